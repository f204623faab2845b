"""Numbers of drawn molecules: lists for which every number is known by hand, scipy, and the n-gram that stands beside them."""

import math
import sys
from collections import Counter

import numpy as np
import pytest
from scipy.stats import chisquare, wasserstein_distance

from jaxgen.data.simple_molecules import simple_molecules
from jaxgen.errors import ConfigError
from jaxgen.measures import molecules
from jaxgen.measures.metrics import OF_MOLECULES
from jaxgen.measures.molecules import (
    MoleculeSet,
    canonical,
    compare,
    cosine,
    internal_diversity,
    molecule_metrics,
    passes_filters,
    wasserstein,
)
from jaxgen.measures.n_gram_samples import n_gram_samples

NAPHTHALENE, METHYLNAPHTHALENE, BIPHENYL = "c1ccc2ccccc2c1", "Cc1ccc2ccccc2c1", "c1ccc(-c2ccccc2)cc1"
DRUGS = ["CC(=O)Oc1ccccc1C(=O)O", "CC(=O)Nc1ccc(O)cc1", "Cn1cnc2c1c(=O)n(C)c(=O)n2C", "CC(C)Cc1ccc(C(C)C(=O)O)cc1", BIPHENYL, "CCN"]


def test_every_number_of_a_list_made_by_hand():
    """Eight strings: methane three times, ethane, and four that are no molecules. The fingerprints of the two share no bit."""
    found = molecule_metrics(["C", "CC", "", "C(", "C", "C1CC", "N c", "[CH4]"], ["CC"], ["C"])
    assert (found["n"], found["n_valid"], found["n_reference"]) == (8, 4, 1)
    assert found["validity"] == 0.5 and found["validity_standard_error"] == pytest.approx(math.sqrt(0.25 / 8))
    assert found["uniqueness"] == 0.5 and "uniqueness@1000" not in found  # methane three times, ethane
    assert found["novelty"] == 0.5 and found["novelty_standard_error"] == pytest.approx(math.sqrt(0.25 / 2))
    assert found["internal_diversity_1"] == pytest.approx(1 - (3 * 3 / 4 + 1 / 4) / 4)
    assert found["internal_diversity_2"] == pytest.approx(1 - (3 * math.sqrt(3 / 4) + math.sqrt(1 / 4)) / 4)
    assert found["snn"] == 0.25 and found["snn_standard_error"] == pytest.approx(0.25)
    assert found["fragment_similarity"] == pytest.approx(1 / math.sqrt(10))
    assert math.isnan(found["scaffold_similarity"])
    assert found["filters"] == 1
    assert found["weight_distance"] == pytest.approx(3 / 4 * (30.070 - 16.043), abs=1e-3)
    assert set(found) - {f"{name}_standard_error" for name in found} == {*OF_MOLECULES, "n", "n_valid", "n_reference"} - {
        "uniqueness@1000", "uniqueness@10000",
    }  # fmt: skip


@pytest.mark.parametrize("string", ["", "C(", "C1CC", "c1cccc1", "F(C)C", " CCO", "CCO name", "CCO\t", "CCO |$;;$|", "zwölf", "C\0"])
def test_what_is_no_molecule(string, capfd):
    assert canonical(string) is None and molecule_metrics([string], ["C"], [])["validity"] == 0
    assert capfd.readouterr() == ("", "")


def test_without_a_valid_sample_the_rest_is_nan():
    found = molecule_metrics(["", "C("], ["C"], ["C"])
    assert found["validity"] == 0 == found["n_valid"]
    assert all(math.isnan(found[name]) for name in OF_MOLECULES if name in found and name != "validity")


def test_one_molecule_written_in_two_ways_is_one():
    found = molecule_metrics(["CCO", "OCC", "C(O)C", "CCN"], ["CCO"], ["OCC", "not a molecule"])
    assert found["uniqueness"] == 0.5 and found["novelty"] == 0.5
    assert molecule_metrics(["OCC"], ["CCO"], ["C(C)O"])["novelty"] == 0


def test_uniqueness_of_the_first_k(monkeypatch):
    monkeypatch.setattr(molecules, "UNIQUE_AT", (10, 20))
    strings = ["C" * (1 + i % 5) for i in range(9)]
    assert "uniqueness@10" not in molecule_metrics([*strings, "C("], ["C"], [])
    found = molecule_metrics([*strings, "C(", "N", "O", "O"], ["C"], [])
    assert found["uniqueness@10"] == 6 / 10 and found["uniqueness"] == 7 / 12 and "uniqueness@20" not in found


def test_a_set_beside_itself():
    found = molecule_metrics(DRUGS, DRUGS[::-1], DRUGS)
    for name in ("validity", "uniqueness", "snn", "fragment_similarity", "scaffold_similarity"):
        assert found[name] == pytest.approx(1, abs=1e-12), name
    for name in ("novelty", "logp_distance", "sa_distance", "qed_distance", "weight_distance"):
        assert found[name] == pytest.approx(0, abs=1e-12), name


def test_neither_the_order_of_strings_nor_that_of_atoms_counts():
    samples, real = [*DRUGS, "CCO", "C(", "CCO"], [*DRUGS[:3], "CCOC(=O)c1ccc2ccccc2c1"]
    generator, chem = np.random.default_rng(0), molecules.rdkit().Chem
    found = molecule_metrics(samples, real, DRUGS[:2])
    shuffled = [samples[i] for i in generator.permutation(len(samples))]
    assert molecule_metrics(shuffled, real[::-1], DRUGS[:2][::-1]) == pytest.approx(found, rel=1e-6)
    other = [string if string == "C(" else chem.MolToSmiles(molecules.parse(string), rootedAtAtom=1) for string in samples]
    assert sum(a != b for a, b in zip(samples, other, strict=True)) >= 6
    assert molecule_metrics(other, real, DRUGS[:2]) == pytest.approx(found, rel=1e-6)


def test_internal_diversity():
    one = np.zeros((1, 1024), np.float32)
    one[0, :3] = 1
    assert internal_diversity(one, 1) == internal_diversity(one, 2) == 0 and math.isnan(internal_diversity(one[:0]))
    bits = (np.random.default_rng(0).random((40, 1024)) < 0.05).astype(np.float32)
    sets = [set(np.flatnonzero(row)) for row in bits]
    similar = np.array([[len(a & b) / len(a | b) for a in sets] for b in sets])
    assert internal_diversity(bits, 1) == pytest.approx(1 - similar.mean())
    assert internal_diversity(bits, 2) == pytest.approx(1 - np.sqrt((similar**2).mean(axis=1)).mean())
    molecules.BLOCK, whole = 100, molecules.BLOCK  # several blocks
    assert internal_diversity(bits, 2) == pytest.approx(1 - np.sqrt((similar**2).mean(axis=1)).mean())
    np.testing.assert_allclose(molecules.nearest_similarity(bits[:7], bits[5:]), similar[:7, 5:].max(axis=1))
    molecules.BLOCK = whole


def test_fragments_and_scaffolds():
    """BRICS cuts N-methylacetamide at its amide bond; a scaffold has no methyl group, and benzene has one ring only."""
    some = MoleculeSet(["CC(=O)NC", "CCO", METHYLNAPHTHALENE, "c1ccccc1", BIPHENYL, BIPHENYL])
    assert some.fragments.total() == 2 + 1 + 1 + 1 + 2 * 2 and some.fragments["CCO"] == 1 and some.fragments["[16*]c1ccccc1"] == 4
    assert some.scaffolds == Counter({NAPHTHALENE: 1, canonical(BIPHENYL): 2})
    assert cosine(some.scaffolds, MoleculeSet([BIPHENYL]).scaffolds) == pytest.approx(2 / math.sqrt(5))
    assert cosine(Counter("a"), Counter("b")) == 0 and math.isnan(cosine(Counter(), Counter("a")))


@pytest.mark.parametrize(
    ("string", "passes"),
    [
        ("CC(=O)Oc1ccccc1C(=O)O", True),
        ("BrCC(F)(Cl)S", True),
        ("C1CCCCCC1", True),  # a ring of 7
        ("C1CCCCCCC1", False),  # of 8
        ("CI", False),
        ("C[Si](C)(C)C", False),
        ("C[N+](C)(C)C", False),
        ("C[N+](=O)[O-]", False),  # charges that cancel are charges
        ("O=C1C=CC(=O)C=C1", False),  # quinone, a PAINS pattern
        ("*C", False),
    ],
)
def test_filters(string, passes):
    assert passes_filters(molecules.parse(string)) == passes


@pytest.mark.parametrize("sizes", [(1, 1), (7, 7), (5, 12), (100, 3)])
def test_the_wasserstein_distance_is_that_of_scipy(sizes):
    generator = np.random.default_rng(sum(sizes))
    a, b = (np.round(generator.normal(size=size), 1) for size in sizes)  # with equal values
    assert wasserstein(a, b) == pytest.approx(wasserstein_distance(a, b)) == pytest.approx(wasserstein(b, a))
    assert wasserstein(a, a + 2) == pytest.approx(2) and math.isnan(wasserstein(a, a[:0]))


def test_properties():
    """The weight of aspirin from its formula, C9H8O4, and the distances by scipy."""
    one, other = MoleculeSet(DRUGS[:1]), MoleculeSet(DRUGS[1:])
    assert one.properties["weight"] == pytest.approx(9 * 12.011 + 8 * 1.008 + 4 * 15.999, abs=0.02)
    found = compare(other, one, set())
    for name, values in other.properties.items():
        assert found[f"{name}_distance"] == pytest.approx(wasserstein_distance(values, one.properties[name]))
    assert (other.properties["sa"] >= 1).all() and (other.properties["qed"] <= 1).all()


def test_without_rdkit_one_line_says_what_to_install(monkeypatch):
    molecules.rdkit.cache_clear()
    for name in [name for name in sys.modules if name.split(".")[0] == "rdkit"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "rdkit", None)
    wanted = r'^rdkit: wanted this package, which reads molecules, got none that can be imported; pip install "jaxgen\[chem\]"$'
    with pytest.raises(ConfigError, match=wanted):
        molecule_metrics(["C"], ["C"], [])
    monkeypatch.undo()
    molecules.rdkit.cache_clear()


def test_what_cannot_be_compared_is_one_line():
    message = "^samples, reference: wanted at least one string, and one valid molecule to compare with, got "
    for samples, reference in (([], ["C"]), (["C"], ["C("]), (["C"], [])):
        with pytest.raises(ConfigError, match=message):
            molecule_metrics(samples, reference, [])


def test_the_simple_molecules_are_different_molecules():
    strings = simple_molecules()
    assert len(strings) == len(set(map(canonical, strings)) - {None}) == 2912
    assert {"CC(C)C(=O)Nc1ccccc1", "c1ccccc1C(=O)Oc1ccccc1Cl", "COCCOCCC1CCOCC1"} <= set(strings)


# --- The n-gram beside them ---------------------------------------------------------------------------------------------------------


def test_an_n_gram_draws_with_the_frequencies_of_its_strings():
    tokens = np.array([[1, 2, 0, 0], [1, 2, 2, 0], [2, 1, 0, 0], [1, 0, 0, 0]], np.uint8)
    drawn = n_gram_samples(tokens, 20_000, order=2)
    assert drawn.shape == (20_000, 4) and drawn.dtype == np.uint8
    stopped = np.maximum.accumulate(drawn == 0, axis=1)
    assert (drawn[stopped] == 0).all()
    assert chisquare(np.bincount(drawn[:, 0], minlength=3)[1:], [15_000, 5000]).pvalue > 1e-3
    for context, share in ((1, [2 / 4, 0, 2 / 4]), (2, [2 / 4, 1 / 4, 1 / 4])):  # what follows 1, and 2, in the strings
        after = drawn[:, 1][drawn[:, 0] == context]
        found, wanted = np.bincount(after, minlength=3), np.array(share) * len(after)
        assert (found[wanted == 0] == 0).all() and chisquare(found[wanted > 0], wanted[wanted > 0]).pvalue > 1e-3


def test_any_n_tokens_of_a_draw_are_in_a_training_string():
    generator = np.random.default_rng(0)
    tokens = generator.integers(1, 5, (30, 12)).astype(np.uint8)
    tokens[np.arange(12) >= generator.integers(3, 13, 30)[:, None]] = 0

    def grams(rows):
        padded = np.concatenate([np.full((len(rows), 3), 9), rows, np.zeros((len(rows), 1), int)], axis=1)
        return {tuple(row[i : i + 4]) for row in padded for i in range(12) if i == 0 or row[i + 2] != 0}

    drawn = n_gram_samples(tokens, 500, order=4, generator=generator)
    assert grams(drawn) <= grams(tokens) and len(np.unique(drawn, axis=0)) > 30
    whole = {row.tobytes() for row in n_gram_samples(tokens, 200, order=13)}
    assert whole <= {row.tobytes() for row in tokens} and len(whole) > 20  # so long a memory repeats the strings
    np.testing.assert_array_equal(n_gram_samples(tokens, 5), n_gram_samples(tokens, 5))
    with pytest.raises(ConfigError, match="order"):
        n_gram_samples(tokens, 5, order=0)
    with pytest.raises(ConfigError, match="order 40"):
        n_gram_samples(tokens, 5, order=40)
