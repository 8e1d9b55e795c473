"""Secrets, card numbers and ways to reach a person, as they stand in texts."""

from __future__ import annotations

import re

_SECRETS = (
    ("", "AKIA", r"\bAKIA[0-9A-Z]{16}\b"),
    ("", "ASIA", r"\bASIA[0-9A-Z]{16}\b"),
    ("", "AIza", r"\bAIza[0-9A-Za-z_-]{35}"),
    ("_", "gh", r"\bgh[pousr]_[0-9A-Za-z]{36}"),
    ("_", "github_pat_", r"\bgithub_pat_[0-9A-Za-z_]{22,}"),
    ("-", "glpat-", r"\bglpat-[0-9A-Za-z_-]{20,}"),
    ("-", "sk-", r"\bsk-[0-9A-Za-z_-]{20,}"),
    ("_", "k_live_", r"\b[rs]k_live_[0-9A-Za-z]{16,}"),
    ("-", "xox", r"\bxox[abeoprs]-[0-9A-Za-z-]{10,}"),
    ("_", "hf_", r"\bhf_[0-9A-Za-z]{30,}"),
    ("_", "npm_", r"\bnpm_[0-9A-Za-z]{36}"),
    ("-", "pypi-", r"\bpypi-AgE[0-9A-Za-z_-]{50,}"),
    (".", "SG.", r"\bSG\.[0-9A-Za-z_-]{16,99}\.[0-9A-Za-z_-]{16}"),
    ("=", "AccountKey=", r"AccountKey=[0-9A-Za-z+/]{60,}={0,2}"),
    (".", "eyJ", r"\beyJ[0-9A-Za-z_-]{8,999}\.eyJ[0-9A-Za-z_-]{8,999}\.[0-9A-Za-z_-]{8}"),
    ("-----", "PRIVATE KEY", r"-----BEGIN (?:[A-Z]+ ){0,3}PRIVATE KEY(?: BLOCK)?-----\s+\S{16}"),
)
"""Of each kind of secret a sign and a word that it holds for certain, looked for in this order because most
texts lack the sign, and its whole form as the services document it."""

_PLAIN = {kind: pattern for _, kind, pattern in _SECRETS}
_PATTERNS: dict[str, re.Pattern[str]] = {}
_DISTINCT = 8
_EXAMPLE = re.compile(r"EXAMPLE|x{4}|X{4}|\.{3}|your|0123456789|1234567890", re.IGNORECASE)

_CARD = re.compile(r"(?<![\d.,-])[3-6]\d{3}(?:[ -]?\d){9,15}(?![\d.,-]?\d)")
_CARD_LENGTHS = {"3": (14, 15, 16), "4": (13, 16, 19), "5": (16,), "6": (16, 19)}
_MAIL = re.compile(
    r"(?<![\w.+-])[\w+-][\w.+-]{0,63}@[A-Za-z0-9-]{1,63}(?:\.[A-Za-z0-9-]{1,63}){0,3}\.[A-Za-z]{2,12}\b"
)
_PHONE = re.compile(
    r"(?<![\w+])\+[1-9]\d{0,2}[ .-]?(?:\(\d{1,4}\)[ .-]?)?\d{1,4}(?:[ .-]?\d{2,4}){2,4}(?!\d)"
    r"|(?<!\w)\(\d{3}\) ?\d{3}[ .-]\d{4}(?!\d)"
    r"|(?<![\w.-])\d{3}([.-])\d{3}\1\d{4}(?![\w.-]?\d)"
)
_PHONE_DIGITS = 9


def holds_secret(text: str) -> bool:
    """True for a key or token of a known form; examples such as `sk-xxxx…` do not count."""
    for marker in [word for sign, word, _ in _SECRETS if sign in text and word in text]:
        for found in _pattern(marker).finditer(text):
            secret = found.group()
            if len(set(secret)) >= _DISTINCT and not _EXAMPLE.search(secret):
                return True
    return False


def _pattern(marker: str) -> re.Pattern[str]:
    """Compiled when it is first needed, which for most files is never."""
    if marker not in _PATTERNS:
        _PATTERNS[marker] = re.compile(_PLAIN[marker])
    return _PATTERNS[marker]


def holds_card(text: str) -> bool:
    """True for a number of a payment card: its first digit, its length and its check digit fit."""
    for found in _CARD.finditer(text):
        digits = [int(character) for character in found.group() if character.isdigit()]
        if len(digits) in _CARD_LENGTHS[found.group()[0]] and _luhn(digits) and len(set(digits)) > 2:
            return True
    return False


def _luhn(digits: list[int]) -> bool:
    """The check of ISO/IEC 7812-1, annex B: every second digit from the right counts double."""
    doubled = (sum(divmod(2 * digit, 10)) for digit in digits[-2::-2])
    return (sum(digits[-1::-2]) + sum(doubled)) % 10 == 0


def holds_contact(text: str, digits: int) -> bool:
    """True for an e-mail address, or a phone number in an international or the American form."""
    if "@" in text and _MAIL.search(text):
        return True
    return digits >= _PHONE_DIGITS and _PHONE.search(text) is not None
