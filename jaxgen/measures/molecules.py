"""How good are drawn molecules? Numbers of strings in SMILES beside real ones, as MOSES defines them (Polykovskiy et al. 2020); with rdkit.

    validity              share of the strings that are a molecule: rdkit parses and sanitises them, and they have an atom
    uniqueness            share of the valid strings that are left when each molecule counts once; uniqueness@k: of the first k valid ones
    novelty               share of the different valid molecules that are not among the training molecules
    internal_diversity_p  1 - mean_y (mean_x T(x, y)^p)^(1/p) over all valid x and y, pairs of a molecule with itself included
    snn                   mean over the valid x of max_y T(x, y), y in the reference: similarity to the nearest neighbour
    fragment_similarity   cosine of the counts of BRICS fragments of both sets
    scaffold_similarity   cosine of the counts of Murcko scaffolds that have two rings or more
    filters               share of the valid strings that pass `passes_filters`
    logp_distance, ...    Wasserstein-1 distance of the values of both sets: the integral of |F - G|, F and G their distribution functions

Two strings are one molecule if rdkit gives them the same canonical SMILES. All sets are made canonical before they are compared: `CCO` and
`OCC` are one molecule. T is the Tanimoto similarity of Morgan fingerprints of radius 2 and 1024 bits: bits in common over bits in either.
Apart from uniqueness and novelty, every number counts a molecule as often as it was drawn.

The paper writes the diversity as 1 - (mean_{x, y} T^p)^(1/p). MOSES's code takes the root for each y, which for p = 2 gives as much or
more; this is the code's. Filters are the PAINS patterns of rdkit and MOSES's rules on atoms, charges and rings. MOSES's medicinal chemistry
filters (MCF) are not in rdkit, so `filters` is higher than MOSES's number. Of the properties, logP is Crippen's, SA the score of synthetic
accessibility (1 easy, 10 hard; Ertl and Schuffenhauer 2009), QED the estimate of drug-likeness in 0..1 (Bickerton et al. 2012), the weight
in g/mol. The Frechet distance of ChemNet is left out: it needs the weights of that network.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from functools import cache, cached_property
from types import SimpleNamespace
from typing import Any

import numpy as np
from jaxtyping import Float, Num

from jaxgen.errors import ConfigError

ATOMS = frozenset(("C", "N", "S", "O", "F", "Cl", "Br", "H"))
"""The elements that pass the filters."""
LARGEST_RING = 7
UNIQUE_AT = (1000, 10_000)
BLOCK = 2**22
"""Similarities that are computed at once."""


@cache
def rdkit() -> SimpleNamespace:
    """The parts of rdkit that the library uses. ConfigError where it is not installed. Nothing else of the library imports rdkit."""
    try:
        from rdkit import Chem, rdBase
        from rdkit.Chem import QED, Crippen, Descriptors, FilterCatalog, rdFingerprintGenerator
        from rdkit.Chem.Draw import rdMolDraw2D
        from rdkit.Chem.Scaffolds import MurckoScaffold
        from rdkit.Contrib.SA_Score import sascorer
    except ImportError as error:
        wanted, hint = "this package, which reads molecules", 'pip install "jaxgen[chem]"'
        raise ConfigError("rdkit", wanted, "none that can be imported", hint) from error
    pains = FilterCatalog.FilterCatalogParams()
    pains.AddCatalog(FilterCatalog.FilterCatalogParams.FilterCatalogs.PAINS)
    return SimpleNamespace(
        Chem=Chem,
        quiet=rdBase.BlockLogs,  # a context in which rdkit writes nothing to stderr
        drawing=rdMolDraw2D,
        fingerprint=rdFingerprintGenerator.GetMorganGenerator(radius=2, fpSize=1024).GetFingerprintAsNumPy,
        scaffold=MurckoScaffold.GetScaffoldForMol,
        pains=FilterCatalog.FilterCatalog(pains),
        properties={"logp": Crippen.MolLogP, "sa": sascorer.calculateScore, "qed": QED.qed, "weight": Descriptors.MolWt},
    )


def parse(string: str) -> Any:
    """The molecule (rdkit's `Mol`) of a string in SMILES, or None: for the empty string, a letter that SMILES lacks, what rdkit refuses."""
    if not string or not all("!" <= letter <= "~" for letter in string):  # rdkit takes "" for a molecule, and a name after a space
        return None
    with rdkit().quiet():
        return rdkit().Chem.MolFromSmiles(string)


def canonical(string: str) -> str | None:
    """The canonical SMILES of a string, None if it is not valid."""
    return None if (molecule := parse(string)) is None else rdkit().Chem.MolToSmiles(molecule)


class MoleculeSet:
    """The valid ones of some strings, and what the metrics need of them, each computed when it is first asked for."""

    def __init__(self, strings: Sequence[str]):
        self.n = len(strings)
        self.molecules = [molecule for molecule in map(parse, strings) if molecule is not None]

    def each(self, function: Callable[[Any], Any]) -> list:
        """The function of every valid molecule, without what rdkit would write to stderr."""
        with rdkit().quiet():
            return [function(molecule) for molecule in self.molecules]

    @cached_property
    def canonical(self) -> list[str]:
        """The canonical SMILES of every valid molecule, in the order of the strings."""
        return self.each(rdkit().Chem.MolToSmiles)

    @cached_property
    def fingerprints(self) -> Float[np.ndarray, "N 1024"]:
        """Bits as float32, 0 or 1; products of them are exact."""
        return np.array(self.each(rdkit().fingerprint), np.float32).reshape(-1, 1024)

    @cached_property
    def fragments(self) -> Counter:
        """How often each BRICS fragment occurs."""
        chem = rdkit().Chem
        cut = self.each(lambda molecule: chem.MolToSmiles(chem.FragmentOnBRICSBonds(molecule)).split("."))
        return Counter(fragment for fragments in cut for fragment in fragments)

    @cached_property
    def scaffolds(self) -> Counter:
        """How often each Murcko scaffold of two rings or more occurs."""
        found = [scaffold for scaffold in self.each(rdkit().scaffold) if scaffold.GetRingInfo().NumRings() >= 2]
        return Counter(map(rdkit().Chem.MolToSmiles, found))

    @cached_property
    def properties(self) -> dict[str, Float[np.ndarray, " N"]]:
        """logP, SA, QED and weight of every valid molecule."""
        return {name: np.array(self.each(value), np.float64) for name, value in rdkit().properties.items()}


def molecule_metrics(samples: Sequence[str], reference: Sequence[str], train: Sequence[str]) -> dict[str, float | int]:
    """All numbers of the module's table for strings in SMILES, with "n" (samples), "n_valid", "n_reference" (its valid ones) and standard
    errors ("validity_standard_error") of those that are means.

    reference: real strings that the model was not trained on; train: those that it was trained on, for novelty. A number that does not
    exist is nan: all but the validity without a valid sample, and a similarity of fragments or scaffolds where a set has none.
    "uniqueness@1000" and "uniqueness@10000" are there where so many strings are valid. Raises ConfigError for no samples, no valid
    reference, or without rdkit.
    """
    return compare(MoleculeSet(samples), MoleculeSet(reference), set(map(canonical, train)) - {None})


def compare(samples: MoleculeSet, reference: MoleculeSet, train: set[str]) -> dict[str, float | int]:
    """`molecule_metrics` of sets that are described already. train: canonical SMILES."""
    if not samples.n or not reference.molecules:
        got = f"{samples.n} and {len(reference.molecules)}"
        raise ConfigError("samples, reference", "at least one string, and one valid molecule to compare with", got)
    valid, different = samples.canonical, set(samples.canonical)
    counts = {"n": samples.n, "n_valid": len(valid), "n_reference": len(reference.molecules)}
    result = _share("validity", len(valid), samples.n)
    result["uniqueness"] = len(different) / len(valid) if valid else float("nan")
    result |= {f"uniqueness@{k}": len(set(valid[:k])) / k for k in UNIQUE_AT if k <= len(valid)}
    result |= _share("novelty", len(different - train), len(different))
    for p in (1, 2):
        result[f"internal_diversity_{p}"] = internal_diversity(samples.fingerprints, p)
    result |= _mean("snn", nearest_similarity(samples.fingerprints, reference.fingerprints))
    result["fragment_similarity"] = cosine(samples.fragments, reference.fragments)
    result["scaffold_similarity"] = cosine(samples.scaffolds, reference.scaffolds)
    result |= _share("filters", sum(samples.each(passes_filters)), len(valid))
    for name, values in samples.properties.items():
        result[f"{name}_distance"] = wasserstein(values, reference.properties[name])
    return result | counts


def passes_filters(molecule: Any) -> bool:
    """Whether a molecule has only atoms of C, N, S, O, F, Cl, Br and H, none of them charged, no ring of 8 atoms or more, and none of the
    480 PAINS patterns of rdkit (structures that disturb many assays; Baell and Holloway 2010)."""
    atoms, rings = molecule.GetAtoms(), molecule.GetRingInfo().AtomRings()
    plain = all(atom.GetFormalCharge() == 0 and atom.GetSymbol() in ATOMS for atom in atoms)
    return plain and max(map(len, rings), default=0) <= LARGEST_RING and not rdkit().pains.HasMatch(molecule)


def internal_diversity(fingerprints: Num[np.ndarray, "N D"], p: int = 1) -> float:
    """1 - mean_y (mean_x T(x, y)^p)^(1/p), as MOSES's code has it; 0 for a single molecule, nan for none."""
    if not len(fingerprints):
        return float("nan")
    means = [(block**p).mean(axis=1) ** (1 / p) for block in _similarities(fingerprints, fingerprints)]
    return float(1 - np.concatenate(means).mean())


def nearest_similarity(fingerprints: Num[np.ndarray, "N D"], others: Num[np.ndarray, "M D"]) -> Float[np.ndarray, " N"]:
    """max_y T(x, y) of every x, y among the others."""
    return np.concatenate([np.zeros(0), *(block.max(axis=1) for block in _similarities(fingerprints, others))])


def _similarities(a: Num[np.ndarray, "N D"], b: Num[np.ndarray, "M D"]):
    """T in float64, a block of rows [., M] at a time."""
    size = max(1, BLOCK // max(len(b), 1))
    for start in range(0, len(a), size):
        rows = a[start : start + size]
        common = (rows @ b.T).astype(np.float64)
        yield common / (rows.sum(axis=1)[:, None] + b.sum(axis=1) - common)


def cosine(a: Counter, b: Counter) -> float:
    """The cosine of the angle between two vectors of counts; nan where one is empty."""
    if not a or not b:
        return float("nan")
    squares = [sum(count**2 for count in counts.values()) for counts in (a, b)]
    return sum(count * b[key] for key, count in a.items()) / float(np.sqrt(squares[0]) * np.sqrt(squares[1]))


def wasserstein(a: Num[np.ndarray, " N"], b: Num[np.ndarray, " M"]) -> float:
    """The Wasserstein-1 distance of two sets of numbers, the area between their distribution functions; nan for an empty set."""
    if not len(a) or not len(b):
        return float("nan")
    values = np.sort(np.concatenate([a, b]))
    below = [np.searchsorted(np.sort(x), values[:-1], side="right") / len(x) for x in (a, b)]
    return float((np.abs(below[0] - below[1]) * np.diff(values)).sum())


def _share(name: str, count: int, n: int) -> dict[str, float]:
    """A share with its binomial standard error; nan of none."""
    share = count / n if n else float("nan")
    return {name: share, f"{name}_standard_error": float(np.sqrt(share * (1 - share) / n)) if n else float("nan")}


def _mean(name: str, values: Float[np.ndarray, " N"]) -> dict[str, float]:
    error = values.std(ddof=1) / np.sqrt(len(values)) if len(values) > 1 else float("nan")
    return {name: float(values.mean()) if len(values) else float("nan"), f"{name}_standard_error": float(error)}
