"""The documentation: reference pages made from the code, and checks of links and examples."""
