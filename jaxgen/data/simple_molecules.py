"""Simple molecules as strings in SMILES, written out by a rule: a set of strings that needs no file.

A string is head + link + tail. The last atom of a head and the first atom of a tail have a bond to spare, so every combination is a
molecule: CC(C) + C(=O)N + c1ccccc1 is the anilide of isobutyric acid, CC(C)C(=O)Nc1ccccc1. Heads and tails are chains, saturated rings, and
aromatic rings with at most one more group. They are not drugs, and nothing is said of whether they are stable or can be made.
"""

GROUPS = ("F", "Cl", "Br", "C", "OC", "N", "C#N", "C(F)(F)F")
CHAINS = ("C", "CC", "CCC", "CC(C)", "CCCC", "COCC")
HEADS = (*CHAINS, "C1CC1", "C1CCCC1", "C1CCCCC1", "c1ccccc1", "c1ccncc1", "c1ccsc1", "c1ccoc1")
LINKS = ("C(=O)N", "C(=O)O", "C(=O)NC", "C(=O)C", "CN", "OCC", "S(=O)(=O)N")
TAILS = (
    *("C1CCCC1", "C1CCCCC1", "C1CCOCC1", "c1ccccc1", "c1ccncc1", "c1cccnc1", "c1ncccn1", "c1ccc2ccccc2c1"),
    *(f"c1ccc({group})cc1" for group in GROUPS),
    *(f"c1cccc({group})c1" for group in GROUPS),
    *(f"c1ccccc1{group}" for group in GROUPS),
)


def simple_molecules() -> list[str]:
    """All combinations of a head, a link and a tail, each a different molecule."""
    return [head + link + tail for head in HEADS for link in LINKS for tail in TAILS]
