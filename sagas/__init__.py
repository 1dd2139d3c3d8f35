"""Middle floor: what is done. Each saga is one file here and reads like a sentence."""
