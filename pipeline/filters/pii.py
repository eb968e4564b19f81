"""Personal data replaced: e-mail addresses, and IP addresses that are somebody's. Drops nothing."""

from __future__ import annotations

import ipaddress
import re

from pipeline.filter_config import PiiConfig
from pipeline.filters.view import DocumentView

# each begins where nothing of its own kind stands before it: no run of characters is tried from its middle again
_EMAIL = re.compile(r"(?<![\w.%+-])[\w.%+-]++@(?:[A-Za-z0-9-]+\.)+[A-Za-z]{2,}")
_IPV4 = re.compile(r"(?<![\w.])\d{1,3}(?:\.\d{1,3}){3}(?!\w|\.\d)", re.ASCII)
# the addresses that are given out begin with 2 or 3
_IPV6 = re.compile(r"(?<![\w:.])[23][0-9a-fA-F]{3}:[0-9a-fA-F:]*[0-9a-fA-F:](?![\w:])", re.ASCII)


def rejection(view: DocumentView, config: PiiConfig) -> None:
    """None: every document stays, with its text changed where there was something to replace."""
    text = view.text
    if config.email_replacement is not None and "@" in text:
        replacement = config.email_replacement
        text = _EMAIL.sub(lambda match: replacement, text)
    if config.ip_replacement is not None:
        replacement_of_ip = config.ip_replacement
        for pattern in (_IPV4, _IPV6):
            text = pattern.sub(lambda match: replacement_of_ip if _is_public(match[0]) else match[0], text)
    view.text = text


def _is_public(address: str) -> bool:
    try:
        return ipaddress.ip_address(address).is_global
    except ValueError:
        return False
