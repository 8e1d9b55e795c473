"""Texts and conversations that bring out differences between two tokenizers or two template engines."""

from __future__ import annotations

from typing import Any

from ollama_tune.core.data.values import Message

TEXTS: tuple[str, ...] = (
    "Hello, world!",
    " leading space",
    "trailing space ",
    "two  spaces and   three",
    "    four spaces",
    "\tone tab",
    "\t\ttabs\tbetween\twords",
    "line\nbreak",
    "two\n\nbreaks",
    "three\n\n\nbreaks\n",
    "windows\r\nlines\r\n",
    "\n leading newline and space",
    "space before newline \n",
    " \n \n ",
    "",
    " ",
    "   ",
    "\n",
    "I'm sure they'll say it's what we've done; you'd agree, don't you?",
    "I'M SURE THEY'LL SAY IT'S WE'VE",
    "'s 't 're 've 'm 'll 'd",
    "it’s a curly apostrophe",
    "0 1 12 123 1234 12345 123456 1234567",
    "3.14159, 1,000,000 and 1e-10",
    "2024-02-29T23:59:60Z +49 (0)30 1234-5678",
    "a1b2c3 x86_64 utf8mb4",
    "price: $9.99, 50% off; 3 × 4 = 12",
    "e-mail: someone@example.org, https://example.org/a?b=c&d=%20#top",
    "C:\\Users\\name\\file.txt and /usr/local/bin",
    "def f(x):\n    return x**2  # square\n",
    "if (a<b && c>=d) { e[i++] |= 0xFF; }",
    '{"key": [1, 2.5, null, true], "text": "quote \\" here"}',
    "<html><body class='x'>&amp;</body></html>",
    "SELECT * FROM t WHERE a = 'b';--",
    "CamelCaseAndsnake_case and kebab-case",
    "ALL CAPS and mIxEd",
    "!?!?... --- *** ___ ~~~ ```",
    "((nested (brackets)) [and] {others})",
    "Straße, Größe, Übermut",
    "naïve café résumé",
    "cafe\u0301 in two code points",
    "Zażółć gęślą jaźń",
    "Съешь ещё этих мягких французских булок",
    "Ξεσκεπάζω την ψυχοφθόρα",
    "中文字符和，标点。",
    "日本語のテキスト、カタカナ",
    "한국어 문장입니다",
    "हिन्दी में लिखा हुआ",
    "ภาษาไทยไม่มีช่องว่าง",
    "مرحبا بالعالم ١٢٣",
    "שלום עולם",
    "Ｆｕｌｌ　ｗｉｄｔｈ　１２３",
    "½ ² ³ Ⅷ ① ٣",
    "😀 👍🏽 👩‍👩‍👧‍👦 🇩🇪",
    "🏳️‍🌈 and text",
    "zero\u200bwidth and\u00a0hard\u2003spaces",
    "\u202eright to left",
    "\ufeffbyte order mark",
    "combining: a\u0323\u0307 q\u0307\u0323",
    "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa",
    "the the the the the",
    "\x01\x02\x7f control",
    "∑∏∫√∞ ≤≥≠ →⇒ αβγ",
)

_ASK = Message("user", "What is the capital of France?")
_ANSWER = Message("assistant", "Paris.")
_SYSTEM = Message("system", "You are a careful helper. Answer briefly.")
CONVERSATIONS: tuple[tuple[Message, ...], ...] = (
    (_ASK,),
    (_SYSTEM, _ASK),
    (_ASK, _ANSWER, Message("user", "And of Spain?")),
    (_SYSTEM, _ASK, _ANSWER, Message("user", "And of Spain?"), Message("assistant", "Madrid."), _ASK),
    (Message("user", "  spaces and\nnewlines \n\n around  \n"),),
    (Message("user", "Grüße 😀 中文 <b>{{ not a template }}</b> {% raw %}"),),
    (Message("user", ""),),
)

VARIABLES: tuple[dict[str, Any], ...] = (
    {"enable_thinking": True},
    {"enable_thinking": False},
    {"date_string": "1 Jan 1999"},
)
"""Options that a client may send with a conversation; a template that is fixed renders the same with all."""
