"""Texts to try tokenizers with, made the same every time: many kinds mixed, and long runs of one kind."""

# ruff: noqa: RUF001 - letters of other scripts are meant

from __future__ import annotations

import random
import string
from collections.abc import Callable

PROSE = {
    "English": "The miller's daughter couldn't spin straw into gold, so she'd asked whoever came by; nobody knew how.",
    "German": "Über den großen Fluß führte keine Brücke, und wer hinüber wollte, mußte dem Fährmann drei Münzen geben.",
    "French": "L'été dernier, nous avions loué une maison près de la forêt où l'on n'entendait que les oiseaux.",
    "Polish": "Żółw i źrebię szły ścieżką, a gęś gęgała na łące koło młyna.",
    "Turkish": "İstanbul'un kıyısında oturan yaşlı balıkçı, ağlarını her sabah güneş doğmadan önce toplardı.",
    "Vietnamese": "Ngày xửa ngày xưa, ở một làng nọ có hai anh em sống với nhau rất hòa thuận.",
    "Russian": "В некотором царстве, в некотором государстве жил-был старик, и было у него три сына.",
    "Greek": "Μια φορά κι έναν καιρό ήταν ένας βασιλιάς που είχε τρεις κόρες.",
    "Hebrew": "בראש ההר הגבוה עמד בית קטן ובו גרה אישה זקנה עם שלוש עזים.",
    "Arabic": "كان يا ما كان في قديم الزمان تاجرٌ يعيش في مدينةٍ على شاطئ البحر.",
    "Hindi": "एक घने जंगल में एक बूढ़ा शेर रहता था, जो अब शिकार नहीं कर सकता था।",
    "Tamil": "ஒரு ஊரில் ஒரு ஏழை விவசாயி தன் மனைவியுடன் வாழ்ந்து வந்தான்.",
    "Thai": "กาลครั้งหนึ่งนานมาแล้วมีชายชราคนหนึ่งอาศัยอยู่ริมแม่น้ำ",
    "Chinese": "从前有一座山，山上有一座庙，庙里住着一个老和尚和一个小和尚。",
    "Japanese": "むかしむかし、あるところに、おじいさんとおばあさんが住んでいました。カタカナも使います。",
    "Korean": "옛날 옛적에 깊은 산속에 나무꾼이 어머니를 모시고 살고 있었습니다.",
}
CODE = [
    "def f(x: int = 0) -> None:\n    if x > 10:\n        return self._table[x:-1] or {'a': 1.5e-7}\n",
    '#include <stdio.h>\n\nint main(void) {\n\tprintf("%08x\\n", 0xDEADBEEF);\n\treturn 0;\n}\n',
    '<table class="t"><tr><td>&nbsp;a</td></tr></table>\n<!-- comment --><br/>\n',
    '{"id": 12345, "name": "x\\u00e9", "tags": [null, true, -0.5], "url": "https://example.org/a?b=c&d=%20#e"}\n',
    "SELECT COUNT(*) FROM t WHERE a <> 'it''s' AND b >= 10;\r\n",
]
MARKED = [
    "<|im_start|>",
    "<|endoftext|>",
    "</s>",
    "<unk>",
    "[CLS]",
    "<0x0A>",
    "<start_of_turn>",
    "<fim_prefix>",
    "▁",
    "Ġ",
]
EMOJI = ["😀", "👩‍👩‍👧‍👦", "🏳️‍🌈", "👍🏽", "🇩🇪", "❤️", "🌫️"]

RUNS = {
    "letters": "a", "capitals": "A", "digits": "7", "spaces": " ", "tabs": "\t", "newlines": "\n", "punctuation": "!",
    "symbols": "~", "accents": "\xe9", "cjk": "\u4e2d", "kana": "\u3042", "hangul": "\ud55c", "emoji": "\U0001f600",
    "marks": "\u0301", "wide spaces": "\u3000", "nulls": "\0", "no spaces": "aZ9!\xe9\u4e2d\U0001f600",
    "paragraphs": "\n\na",
}  # fmt: skip
"""The text that each run repeats."""


def mixed(n_bytes: int) -> bytes:
    """Return about ``n_bytes`` of UTF-8: prose of sixteen languages, code, numbers, emoji, white space, long words."""
    choose = random.Random(8)
    languages = list(PROSE.values())

    def numbers() -> str:
        return " ".join(str(choose.randrange(10 ** choose.randint(1, 15))) for _ in range(choose.randint(1, 12)))

    def blanks() -> str:
        return choose.choice(" \t\n\r\f\v\u00a0\u2003\u3000") * choose.randint(1, 40)

    def characters() -> str:
        low, high = choose.choice([(0x00, 0x20), (0x21, 0x7F), (0x7F, 0x370), (0x2000, 0x2C00), (0x1F300, 0x1FB00)])
        return "".join(chr(choose.randrange(low, high)) for _ in range(choose.randint(1, 60)))

    def letters() -> str:
        return "".join(choose.choices(string.ascii_letters + string.digits + "+/", k=choose.randint(20, 400)))

    kinds: list[Callable[[], str]] = [
        lambda: choose.choice(languages), lambda: choose.choice(languages), lambda: " ".join(choose.choices(languages, k=5)),
        lambda: choose.choice(CODE), numbers, blanks, characters, letters,
        lambda: "".join(choose.choices(EMOJI, k=choose.randint(1, 8))), lambda: choose.choice(MARKED),
        lambda: choose.choice("!?.,;-=*#_~'\"") * choose.randint(1, 80),
    ]  # fmt: skip
    parts, size = [], 0
    while size < n_bytes:
        part = (choose.choice(kinds)() + choose.choice([" ", " ", "\n", "\n\n"])).encode()
        parts.append(part)
        size += len(part)
    return b"".join(parts)


def runs(n_characters: int) -> dict[str, bytes]:
    """Return runs of one kind, each of ``n_characters``; and such that end otherwise than they began."""
    texts = {kind: unit * (n_characters // len(unit)) for kind, unit in RUNS.items()}
    texts["spaces and a letter"] = texts["spaces"] + "x"
    texts["spaces and a digit"] = texts["spaces"] + "7"
    texts["punctuation and newlines"] = (
        texts["punctuation"][: n_characters // 2] + texts["newlines"][: n_characters // 2]
    )
    texts["words without an end"] = "ab " * (n_characters // 3)
    return {kind: text.encode() for kind, text in texts.items()}
