"""What a plan says beside its figures. No torch."""

from __future__ import annotations

from compression.anatomy.budget import selected_sites
from compression.anatomy.families import family_of
from compression.anatomy.hidden_width import HIDDEN, turned, turned_by_layer
from compression.anatomy.inspection import Inspection
from compression.anatomy.ranks import RANK, atoms_of
from compression.anatomy.structures import GRANULARITIES
from compression.anatomy.vocabulary import VOCABULARY
from compression.specification import JobSpecification


def _narrower(specification: JobSpecification, inspection: Inspection) -> str:
    if turned_by_layer(specification):
        return (
            "A narrower residual stream makes the file smaller and the model faster; the two square weights "
            "on the skip connections of each layer, and a head that was tied to the embeddings, count. "
            "transformers loads it with the code in the artifact (trust_remote_code=True)."
        )
    if turned(specification) and inspection.tied_embeddings:
        return (
            "A narrower residual stream makes the file smaller and every runtime faster; in its turned basis "
            "the head is not tied to the embeddings any more, and counts."
        )
    if HIDDEN in (specification.structure.granularity or ""):
        return "A narrower residual stream makes the file smaller and every runtime faster."
    if specification.options.get("allocation", "uniform") == "uniform":
        return "Narrower layers make the file smaller and every runtime faster."
    decided = (
        f"The allocation {specification.options['allocation']} decides while running how many units each "
        "layer keeps; what the target counts is met to a step, the other figures are those of equal shares."
    )
    if specification.output.layout == "padded":
        return f"{decided} Zeros up to the widest layer are counted as parameters and as multiplications."
    return f"{decided} transformers loads the result with the code in the artifact (trust_remote_code=True)."


def _lower(specification: JobSpecification) -> list[str]:
    gain = "Products of two thin weights make the file smaller and the model faster"
    if atoms_of(specification) > 1:
        gain = (
            "Dictionaries with sparse codes make the file smaller; codes are unpacked in every pass, and "
            "dense kernels multiply with their zeros too, so the model is no faster"
        )
    notes = [f"{gain}; transformers loads it with the code in the artifact (trust_remote_code=True)."]
    allocation = specification.options.get("allocation", "uniform")
    if allocation != "uniform":
        notes.append(
            f"The allocation {allocation} decides while running which rank each weight gets; what the target "
            "counts is met to a rank, the other figures are those of equal shares."
        )
    return notes


def plan_notes(specification: JobSpecification, inspection: Inspection) -> list[str]:
    """Sentences on what becomes smaller and faster, and on what is known only while the job runs."""
    notes: list[str] = []
    left_alone = len(inspection.sites) - len(selected_sites(specification, inspection))
    if specification.structure.granularity == "layer":
        notes.append("Fewer layers make the file smaller and every runtime faster.")
    elif specification.structure.granularity == "expert":
        notes.append(
            "Fewer experts make the file and the memory smaller; a token takes as many as before, so it is "
            "about as fast. The experts that stay are renumbered: the plan lists the last ones as gone."
        )
    elif specification.structure.granularity == VOCABULARY:
        notes.append(
            "Fewer rows of the vocabulary make the file smaller, and the head faster. How many must stay is "
            "known only once the job reads the tokenizer: special and added tokens, and the alphabet."
        )
    elif specification.structure.granularity in GRANULARITIES:
        notes.append(_narrower(specification, inspection))
    elif specification.structure.granularity == RANK:
        notes += _lower(specification)
    else:
        notes.append(
            "Zeros among single weights make neither the file smaller nor dense kernels faster; runtimes "
            "with sparse kernels gain, and so does a compressed copy of the file."
        )
        allocation = specification.options.get("allocation", "uniform")
        if allocation != "uniform":
            notes.append(f"The allocation {allocation} decides while running how much each weight loses.")
    if left_alone:
        notes.append(f"{left_alone} of {len(inspection.sites)} weights are left alone by structure.ignore.")
    if not specification.evaluation.dataset:
        notes.append(
            "Quality is not evaluated: give evaluation.dataset, or calibration.dataset, of which some is "
            "held out."
        )
    return notes


def width_notes(specification: JobSpecification, inspection: Inspection, left: Inspection) -> list[str]:
    """What binds the widths of a model whose layers are not alike, and which widths its feed-forwards get
    where they get several; `left` is the smaller model."""
    kinds = GRANULARITIES.get(specification.structure.granularity or "", ())
    equal = family_of(inspection.architecture).keeps_equal
    if not equal or not {"neuron", "head"}.intersection(kinds):
        return []
    widths = sorted({site.shape[1] for site in left.sites if site.kind == "down"})
    become = f" Feed-forwards become {', '.join(map(str, widths))} wide." if len(widths) > 1 else ""
    return [f"{equal}.{become}"]
