"""The QR code of WhatsApp's multi-device pairing, as a real PNG."""

import base64
from functools import lru_cache
from random import Random

_LETTERS = "ABCDEFGHJKLMNPQRSTVWXYZ123456789"


def new_code(random: Random) -> str:
    """``2@reference,key,key,key``: a reference and three keys, base64."""
    reference = base64.b64encode(random.randbytes(96)).decode()
    keys = (base64.b64encode(random.randbytes(32)).decode() for _ in range(3))
    return f"2@{reference},{','.join(keys)}"


def new_pairing_code(random: Random) -> str:
    return "".join(random.choices(_LETTERS, k=8))


@lru_cache(maxsize=64)
def png_data_url(code: str) -> str:
    """About 13 KB, like the real ones; drawn on first use."""
    import segno

    # A fixed mask skips the comparison of all eight masks, which takes most of the time.
    drawn = segno.make(code, error="l", micro=False, mask=3)
    return drawn.png_data_uri(scale=4, border=6, compresslevel=0)
