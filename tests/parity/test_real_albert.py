"""A real ALBERT, of RXNMapper (Schwaller et al. 2021), which was trained on masked tokens of chemical reactions."""

import re

import families
import numpy as np
import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from parity import assets  # noqa: E402
from transformer_zoo.pretrained import from_pretrained  # noqa: E402

# Precursors >> product, as SMILES.
REACTIONS = (
    "CCO.CC(=O)O>>CCOC(C)=O",  # Fischer's esterification
    "CCN.O=C(Cl)c1ccccc1>>CCNC(=O)c1ccccc1",  # an amide of an acid chloride
    "Brc1ccccc1.COc1ccc(B(O)O)cc1>>COc1ccc(-c2ccccc2)cc1",  # Suzuki's coupling
    "CC(=O)OC(C)=O.O=C(O)c1ccccc1O>>CC(=O)Oc1ccccc1C(=O)O",  # aspirin
    "CC(=O)OC(C)=O.Nc1ccc(O)cc1>>CC(=O)Nc1ccc(O)cc1",  # paracetamol
    "O=[N+]([O-])c1ccc(Cl)cc1.[H][H]>>Nc1ccc(Cl)cc1",  # a nitro group reduced
    "CI.Oc1ccc2ccccc2c1.O=C([O-])[O-].[K+].[K+]>>COc1ccc2ccccc2c1",  # Williamson's ether
    "CC(C)(C)OC(=O)N1CCNCC1.O=C(O)C(F)(F)F>>C1CNCCN1",  # a protecting group removed
)
EVERY = 7  # so many tokens apart are those that are hidden


def test_masked_reactions():
    """The logits of the reference, and its predictions for the masked tokens, most of which are right."""
    folder = assets.unpacked("rxnmapper") / "rxnmapper/models/transformers/albert_heads_8_uspto_all_1310k"
    numbers = {token: i for i, token in enumerate((folder / "vocab.txt").read_text().splitlines())}
    rows = [["[CLS]", *re.findall(r"\[.*?\]|Br|Cl|>>|.", reaction), "[SEP]"] for reaction in REACTIONS]
    whole = np.zeros((len(rows), max(map(len, rows))), np.int32)
    for i, row in enumerate(rows):
        whole[i, : len(row)] = [numbers[token] for token in row]
    valid = np.arange(whole.shape[1]) < np.array([[len(row)] for row in rows])
    hidden = valid & (np.arange(whole.shape[1]) % EVERY == EVERY - 1)
    masked = np.where(hidden, numbers["[MASK]"], whole)

    reference = transformers.AlbertForMaskedLM.from_pretrained(folder, attn_implementation="eager").eval()
    with torch.no_grad():
        theirs = reference(torch.as_tensor(masked).long(), attention_mask=torch.as_tensor(valid)).logits.numpy()
    bundle = from_pretrained(folder)
    assert bundle.model.task == "masked-lm" and bundle.fresh == ()
    ours = np.asarray(families.apply(bundle.model, bundle.params, masked, valid_BT=valid).logits)
    assert np.abs(ours - theirs)[valid].max() < 1e-4
    np.testing.assert_array_equal(ours[valid].argmax(-1), theirs[valid].argmax(-1))
    right = ours[hidden].argmax(-1) == whole[hidden]
    assert right.mean() > 0.8, f"{right.mean():.2f} of {right.size}"
