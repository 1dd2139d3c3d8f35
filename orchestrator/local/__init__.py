"""Everything that evosaga needs beside it, on one machine and with nothing installed."""
