"""The shapes of lists in other releases, and the fields they omit."""

from collections.abc import Mapping
from fnmatch import fnmatchcase
from typing import Any

SHAPES = ("no_token", "v1", "nameless")


def shaped(element: Mapping[str, Any], fault: Mapping[str, Any]) -> dict[str, Any]:
    """One list element changed as the fault says: its token null, its name null, or as 1.x and 2.0
    list it, with ``instanceName`` and ``apikey`` inside ``instance``.
    """
    if not fnmatchcase(str(element["name"]), fault["only"]):
        return dict(element)
    match fault["shape"]:
        case "no_token":
            return {**element, "token": None}
        case "nameless":
            return {**element, "name": None}
    inner = {
        "instanceName": element["name"],
        "instanceId": element["id"],
        "owner": element["ownerJid"],
        "profileName": element["profileName"],
        "profilePictureUrl": element["profilePicUrl"],
        "status": element["connectionStatus"],
        "apikey": element["token"],
        "integration": {"integration": element["integration"]},
    }
    return {"instance": inner}
