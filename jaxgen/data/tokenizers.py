"""Tokenizers: a string as a sequence of symbols, which joined give the string again.

    character    every character
    smiles       what the grammar of SMILES takes for one thing: an atom in brackets ([nH], [C@@H]), an atom of one or two letters (C, Cl,
                 Br, aromatic c), a bond, a branch, the number of a ring (1, %12, %(100))

Weininger 1988, "SMILES, a chemical language and information system"; the grammar is that of OpenSMILES 1.0 without what stands inside
brackets. `>` and `>>` separate the parts of a reaction.
"""

import re
from collections.abc import Sequence

from jaxgen.errors import DataError, shown

SMILES = re.compile(r"\[[^\[\]]+\]|Br|Cl|[BCNOPSFI*]|[bcnops]|%\d\d|%\(\d+\)|\d|@@?|>>?|[-=#$:/\\~.()+]")
NAMES = ("character", "smiles")


def symbols(string: str, tokenizer: str, origin: str, hint: str = "") -> Sequence[str]:
    """The symbols of a string by the tokenizer of this name. DataError, with the origin and the hint, for a string that it cannot read."""
    if tokenizer == "character":
        return string
    found, place = [], 0
    while place < len(string):
        match = SMILES.match(string, place)
        if match is None:
            got = f"{shown(string[place:])} from character {place + 1} on"
            raise DataError(origin, "a SMILES string", got, hint)
        found.append(match.group())
        place = match.end()
    return found
