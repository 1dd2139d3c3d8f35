"""Why a saga is where it is, in words, for the terminal and for the pages."""
