"""3.3, 4.1 and 4.2: VAEs with a small beta, of 512 latents, and PCA beside them."""

from collections.abc import Iterable, Mapping
from typing import Any

import torch

from lorasynth.studies.errors import fvu
from lorasynth.studies.finding import (
    SIMILARITY,
    BySeed,
    Finding,
    claim,
    difference,
    interval,
    judged,
    listed,
    materially,
)
from lorasynth.studies.study import Study

_HALVES = "What is best is chosen on one half of the held-out adapters, and judged on the other."


@claim(
    "beta",
    says="beta = 1 reconstructs poorly, beta < 1 well; 512 latents are best",
    section="3.3, 4.2",
    rule="Holds: at its best a beta below 1 has an FVU a tenth smaller than beta = 1, and 512 "
    f"latents; partly: one of them. {_HALVES}",
)
def beta(study: Study) -> Finding:
    """Compare VAEs over beta, width and depth."""
    config = study.config
    rows = [
        _over_seeds(study, "vae", width, depth, weight)
        for depth in config.depths
        for width in config.widths
        for weight in config.betas
    ]
    one = _best(row for row in rows if row["beta"] == 1)
    best = _best(row for row in rows if row["beta"] < 1)
    less = difference(one["fvu_by_seed"], best["fvu_by_seed"])
    clearer, paper_width = materially(less, one["fvu"]), best["width"] == 512
    large = [
        _over_seeds(study, "vae", one["width"], one["depth"], weight)
        for weight in config.large_betas
    ]
    return Finding(
        verdict=judged(holds=clearer and paper_width, partly=clearer or paper_width),
        why={
            # equation 1 with squared errors summed over all values, far more than latents
            "FVU of beta = 1": one["fvu"],
            "at": _place(one),
            "less with a smaller beta": less,
            "at best at": _place(best),
            "identity similarity of both": {r["beta"]: r["similarity"] for r in (one, best)},
        },
        tables={"VAEs on held-out adapters and test subjects": [*rows, *large]},
    )


@claim(
    "vae or pca",
    says="A VAE compresses better than PCA",
    section="4.2",
    rule="Holds: at every width the best VAE has an FVU a tenth smaller than PCA, and at one more "
    f"identity similarity; partly: any of these. {_HALVES}",
)
def vae_or_pca(study: Study) -> Finding:
    """Compare the best VAE with PCA at each width."""
    rows = []
    for width in study.config.widths:
        pca = _over_seeds(study, "pca", width, 1, 0.0)
        vae = _best(
            _over_seeds(study, "vae", width, depth, weight)
            for depth in study.config.depths
            for weight in study.config.betas
        )
        rows.append(
            {
                "width": width,
                "vae": {key: vae[key] for key in ("depth", "beta")},
                "pca_fvu": pca["fvu"],
                "vae_fvu": vae["fvu"],
                "fvu_less": difference(pca["fvu_by_seed"], vae["fvu_by_seed"]),
                "similarity_more": difference(vae["similarity_by_seed"], pca["similarity_by_seed"]),
            }
        )
    closer = [materially(row["fvu_less"], row["pca_fvu"]) for row in rows]
    likelier = [row["similarity_more"]["lo"] > 0 for row in rows]
    last = rows[-1]
    return Finding(
        verdict=judged(holds=all(closer) and any(likelier), partly=any(closer) or any(likelier)),
        why={
            "widths where the VAE's FVU is a tenth smaller": f"{sum(closer)} of {len(rows)}",
            f"FVU of PCA at width {last['width']}": last["pca_fvu"],
            "of the VAE less": last["fvu_less"],
            "its identity similarity more": last["similarity_more"],
        },
        tables={"The best VAE beside PCA": rows},
    )


@claim(
    "linearity",
    says="Linear compression fails as the library grows",
    section="4.1",
    rule="Holds: PCA falls behind a deep VAE in a growing library, which in the end has an FVU a "
    "tenth smaller; partly: it has in the end, but no more so than in the beginning. All VAEs are "
    "trained for as many steps. For each size the beta is chosen with the first seed, on the half "
    "of the held-out adapters that does not judge.",
)
def linearity(study: Study) -> Finding:
    """Compare PCA with a deep VAE at each size of the library."""
    rows: list[dict[str, Any]] = []
    for size in sorted(study.config.sizes):
        width = min(study.config.latents, size - 1)
        pca = _judging([_fvu(study, "pca", {"latents": width}, size)] * len(study.config.seeds))
        vae = _judging(_deep_vae(study, width, size))
        rows.append(
            {
                "size": size,
                "pca_fvu": interval(pca),
                "vae_fvu": interval(vae),
                "fvu_less": difference(pca, vae),
                "by_seed": (torch.tensor(pca) - torch.tensor(vae)).tolist(),
            }
        )
    first, last = rows[0], rows[-1]
    growth = difference(last["by_seed"], first["by_seed"])
    rises, wins = growth["lo"] > 0, materially(last["fvu_less"], last["pca_fvu"])
    return Finding(
        verdict=judged(holds=rises and wins, partly=wins),
        why={
            f"FVU of PCA, of a deep VAE, of {first['size']} adapters": _both(first),
            f"of {last['size']}": _both(last),
            "what the VAE gains on PCA": growth,
        },
        tables={"FVU on held-out adapters": rows},
    )


def _place(row: Mapping[str, Any]) -> str:
    return f"beta {row['beta']:g}, width {row['width']}, depth {row['depth']}"


def _both(row: Mapping[str, Any]) -> dict[str, Any]:
    return {"PCA": row["pca_fvu"], "VAE": row["vae_fvu"]}


def _deep_vae(study: Study, width: int, size: int) -> list[list[float]]:
    """FVU of the best of the deep VAEs, by seed."""
    config = study.config
    epochs = round(config.vae_epochs * max(config.sizes) / size)

    def over(weight: float, seed: int) -> list[float]:
        options = {"latents": width, "depth": max(config.depths), "beta": weight}
        return _fvu(study, "vae", {**options, "epochs": epochs, "seed": seed}, size)

    first, *others = config.seeds
    best = min(config.betas, key=lambda weight: sum(_choosing([over(weight, first)])[0]))
    return [over(best, seed) for seed in (first, *others)]


def _choosing(seeds: BySeed) -> list[list[float]]:
    """The held-out adapters that choose a codec: every other one."""
    return [list(values[::2]) for values in seeds]


def _judging(seeds: BySeed) -> list[list[float]]:
    """The held-out adapters that judge a codec: the rest."""
    return [list(values[1::2]) for values in seeds]


def _best(rows: Iterable[dict[str, Any]]) -> dict[str, Any]:
    """The one with the smallest error on the adapters that choose."""
    return min(rows, key=lambda row: float(row["fvu_of_choosing"]))


def _over_seeds(study: Study, name: str, width: int, depth: int, weight: float) -> dict[str, Any]:
    """One codec over the seeds (PCA has none: it is the same for all)."""
    config = study.config
    width = min(width, config.known - 1) if name == "pca" else width
    options: dict[str, Any] = {"latents": width}
    if name == "vae":
        options |= {"depth": depth, "beta": weight, "epochs": config.vae_epochs}
        cells = [_codec_cell(study, name, {**options, "seed": seed}) for seed in config.seeds]
    else:
        cells = [_codec_cell(study, name, options)] * len(config.seeds)
    errors = [cell["fvu_by_adapter"] for cell in cells]
    return {
        "codec": name,
        "width": width,
        "depth": depth,
        "beta": weight,
        "fvu": interval(_judging(errors)),
        "fvu_by_seed": _judging(errors),
        "fvu_of_choosing": interval(_choosing(errors))["mean"],
        "similarity": interval([cell[SIMILARITY] for cell in cells]),
        "similarity_by_seed": [cell[SIMILARITY] for cell in cells],
    }


def _fvu(study: Study, name: str, options: Mapping[str, Any], size: int) -> list[float]:
    """FVU of a codec of the library's first adapters, on each held-out one."""

    def measure() -> list[float]:
        known, held = study.vectors
        codec = study.codec(name, options, size)
        return listed(fvu(codec.decode(codec.encode(held)), held, known[:size]))

    facts = {"codec": name, "options": options, "size": size}
    return study.cell("codec by size", facts, measure)


def _codec_cell(study: Study, name: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """A codec's errors, and the similarity of test subjects' trained adapters after it."""

    def measure() -> dict[str, Any]:
        known, held = study.vectors
        codec, layout = study.codec(name, options), study.layout
        latents = codec.encode(study.bundle.library.vectors(study.trained(), layout))
        return {
            "fvu_by_adapter": listed(fvu(codec.decode(codec.encode(held)), held, known)),
            SIMILARITY: study.figures(layout.unflatten(codec.decode(latents)))[SIMILARITY],
        }

    facts = {"codec": name, "options": options, **study.tested}
    return study.cell("codec", facts, measure)
