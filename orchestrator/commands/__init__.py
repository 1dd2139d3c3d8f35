"""How commands come in: read, understood, admitted, accepted together."""
