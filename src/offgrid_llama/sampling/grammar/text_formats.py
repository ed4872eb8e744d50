"""Regular expressions of the formats of texts in JSON Schemas (pure).

Each matches part of the texts that have the format, and no other text: of dates for example those from year 1000.
"""

from __future__ import annotations

__all__ = ["FORMAT_PATTERNS"]

_DAY = "0[1-9]|1[0-9]|2[0-8]"
_MONTH_AND_DAY = f"(0[13578]|1[02])-({_DAY}|29|30|31)|(0[469]|11)-({_DAY}|29|30)|02-({_DAY})"
_DATE = f"[1-9][0-9]{{3}}-({_MONTH_AND_DAY})"
_TIME = "([01][0-9]|2[0-3]):[0-5][0-9]:[0-5][0-9](\\.[0-9]{1,9})?(Z|[+-]([01][0-9]|2[0-3]):[0-5][0-9])"
_N = "[0-9]{1,9}"
_HOURS = f"T({_N}H({_N}M({_N}S)?)?|{_N}M({_N}S)?|{_N}S)"
_DAYS = f"({_N}D|{_N}M({_N}D)?|{_N}Y({_N}M({_N}D)?)?)"
_LABEL = "[A-Za-z0-9]{1,30}(-[A-Za-z0-9]{1,30})?"
_HOST = f"({_LABEL}\\.){{0,6}}[A-Za-z]{{2,30}}"
_OCTET = "(25[0-5]|2[0-4][0-9]|1[0-9]{2}|[1-9]?[0-9])"
_GROUP = "[0-9a-fA-F]{1,4}"
_URI_TEXT = "([A-Za-z0-9._~!$&'()*+,;=:@-]|%[0-9A-Fa-f]{2})*"

FORMAT_PATTERNS = {
    "date": _DATE,
    "time": _TIME,
    "date-time": f"{_DATE}T{_TIME}",
    "duration": f"P({_N}W|{_DAYS}({_HOURS})?|{_HOURS})",
    "email": f"[A-Za-z0-9]([A-Za-z0-9_+-]|\\.[A-Za-z0-9]){{0,30}}@({_LABEL}\\.){{1,6}}[A-Za-z]{{2,30}}",
    "hostname": _HOST,
    "ipv4": f"({_OCTET}\\.){{3}}{_OCTET}",
    "ipv6": f"({_GROUP}:){{7}}{_GROUP}|({_GROUP}:){{1,6}}:{_GROUP}|::({_GROUP}:){{0,5}}{_GROUP}|({_GROUP}:){{1,7}}:",
    "uuid": "[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}",
    "uri": f"[a-z][a-z0-9]{{1,20}}://{_HOST}(:[0-9]{{1,5}})?(/{_URI_TEXT})*(\\?{_URI_TEXT})?(#{_URI_TEXT})?",
}
"""By the value of ``format``: the pattern of whole texts."""
