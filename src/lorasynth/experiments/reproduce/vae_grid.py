"""3.3 and 4.2: VAEs with a small beta, of 512 latents, and PCA beside them."""

from typing import Any

import torch

from lorasynth.codec import VAE
from lorasynth.experiments.reproduce.errors import missed
from lorasynth.experiments.reproduce.finding import (
    CLAIMS,
    Finding,
    difference,
    interval,
    judged,
    text,
)
from lorasynth.experiments.reproduce.study import Study


@CLAIMS.register("beta")
def beta(study: Study) -> Finding:
    """Holds: at the best width, a beta below 1 misses less than beta = 1, and 512 is the best."""
    rows = [
        _over_seeds(study, "vae", width, depth, weight)
        for depth in study.config.depths
        for width in study.config.widths
        for weight in study.config.betas
    ]
    one = min((r for r in rows if r["beta"] == 1), key=lambda r: r["missed"]["mean"])
    best = min((r for r in rows if r["beta"] < 1), key=lambda r: r["missed"]["mean"])
    less = best["missed"]["hi"] < one["missed"]["lo"]
    widest = best["width"] == 512
    return Finding(
        claim="beta = 1 reconstructs poorly, beta < 1 well; 512 latents are best",
        section="3.3, 4.2",
        verdict=judged(holds=less and widest, partly=less or widest),
        why=(
            f"Of held-out adapters beta = 1 misses {text(one['missed'])} at its best width "
            f"({one['width']}), beta = {best['beta']:g} misses {text(best['missed'])} at width "
            f"{best['width']} and depth {best['depth']}. Likeness of test subjects' adapters after "
            f"them: {text(one['likeness'])} and {text(best['likeness'])}."
        ),
        values={"rows": rows},
        tables={"VAEs on held-out adapters and test subjects": _flat(rows)},
    )


@CLAIMS.register("vae or pca")
def vae_or_pca(study: Study) -> Finding:
    """Holds: at equal width the best VAE misses less than PCA and keeps more likeness."""
    rows = []
    for width in study.config.widths:
        pca = _over_seeds(study, "pca", width, 1, 0.0)
        vaes = [
            _over_seeds(study, "vae", width, depth, weight)
            for depth in study.config.depths
            for weight in study.config.betas
        ]
        vae = min(vaes, key=lambda row: row["missed"]["mean"])
        likeness = difference(vae["likeness_by_seed"], pca["likeness_by_seed"])
        rows.append(
            {
                "width": width,
                "pca_missed": pca["missed"],
                "vae_missed": vae["missed"],
                "vae": {key: vae[key] for key in ("depth", "beta")},
                "likeness_of_vae_less_pca": likeness,
            }
        )
    closer = [row["vae_missed"]["hi"] < row["pca_missed"]["lo"] for row in rows]
    likelier = [row["likeness_of_vae_less_pca"]["lo"] > 0 for row in rows]
    last = rows[-1]
    return Finding(
        claim="A VAE compresses better than PCA",
        section="4.2",
        verdict=judged(holds=all(closer) and any(likelier), partly=any(closer) or any(likelier)),
        why=(
            f"At width {last['width']} the best VAE misses {text(last['vae_missed'])} of held-out "
            f"adapters where PCA misses {text(last['pca_missed'])}; its adapters are more like by "
            f"{text(last['likeness_of_vae_less_pca'])}."
        ),
        values={"rows": rows},
        tables={"The best VAE beside PCA": _flat(rows)},
    )


@CLAIMS.register("linearity")
def linearity(study: Study) -> Finding:
    """Holds: the share that PCA misses, over what a deep VAE misses, rises with the library."""
    depth = max(study.config.depths)
    rows = []
    for size in study.config.sizes:
        width = min(study.config.latents, size - 1)
        pca = _missed(study, "pca", {"latents": width}, size)
        vaes = [
            _missed(study, "vae", {**_options(study, width, depth, weight), "seed": 0}, size)
            for weight in study.config.betas
        ]
        rows.append({"size": size, "pca": pca, "deep_vae": min(vaes), "ratio": pca / min(vaes)})
    rises = rows[-1]["ratio"] > rows[0]["ratio"]
    wins = rows[-1]["ratio"] > 1
    return Finding(
        claim="Linear compression fails as the library grows",
        section="4.1",
        verdict=judged(holds=rises and wins, partly=rises),
        why=(
            f"With {rows[0]['size']} adapters PCA misses {rows[0]['pca']:.3f} and a deep VAE "
            f"{rows[0]['deep_vae']:.3f} of held-out ones; with {rows[-1]['size']} it is "
            f"{rows[-1]['pca']:.3f} and {rows[-1]['deep_vae']:.3f}."
        ),
        values={"rows": rows},
        tables={"Missed of held-out adapters, one seed": rows},
    )


def _options(study: Study, width: int, depth: int, weight: float) -> dict[str, Any]:
    options = {"latents": width, "depth": depth, "beta": weight}
    return {**options, "epochs": study.config.vae_epochs}


def _over_seeds(study: Study, name: str, width: int, depth: int, weight: float) -> dict[str, Any]:
    """One codec over the seeds (PCA has none: it is the same for all)."""
    width = min(width, study.config.library - 1) if name == "pca" else width
    cells = []
    for seed in study.config.seeds if name == "vae" else study.config.seeds[:1]:
        options: dict[str, Any] = {"latents": width}
        if name == "vae":
            options = {**_options(study, width, depth, weight), "seed": seed}
        cells.append(_codec_cell(study, name, options))
    cells = cells if name == "vae" else cells * len(study.config.seeds)
    return {
        "codec": name,
        "width": width,
        "depth": depth,
        "beta": weight,
        "missed": interval([cell["missed_by_adapter"] for cell in cells]),
        "divergence": sum(cell["divergence"] for cell in cells) / len(cells),
        "likeness": interval([cell["likeness"] for cell in cells]),
        "faces_halfway": interval([cell["faces_halfway"] for cell in cells]),
        "likeness_by_seed": [cell["likeness"] for cell in cells],
    }


def _missed(study: Study, name: str, options: dict[str, Any], size: int) -> float:
    facts = {"codec": name, "options": options, "size": size, "held_out": study.config.held_out}

    def measure() -> float:
        known, held = study.vectors("ours")
        codec = study.codec(name, options, size)
        return missed(codec.decode(codec.encode(held)), held, known[:size])

    return float(study.cell("codec by size", facts, measure))


def _codec_cell(study: Study, name: str, options: dict[str, Any]) -> dict[str, Any]:
    """A codec's errors, and the likeness of test subjects' trained adapters after it."""
    config = study.config
    facts = {"codec": name, "options": options, "library": config.library}
    facts |= {"held_out": config.held_out, "trial": config.trial.subjects}

    def measure() -> dict[str, Any]:
        known, held = study.vectors("ours")
        codec = study.codec(name, options)
        layout, truth = study.layout("ours"), study.trained()
        latents = codec.encode(study.bundle.library.vectors(truth, layout))
        halfway = (latents + latents.roll(1, dims=0)) / 2
        pictures = study.trial.pictures(layout.unflatten(codec.decode(halfway)))
        faces = study.bundle.first.presence(pictures)
        each = (codec.decode(codec.encode(held)) - held).square().sum(dim=1)
        whole = (held - known.mean(dim=0)).square().sum() / len(held)
        return {
            "missed_by_adapter": (each / whole).tolist(),
            "divergence": _divergence(codec, held) if isinstance(codec, VAE) else 0.0,
            "likeness": study.figures(layout.unflatten(codec.decode(latents)))["likeness"],
            "faces_halfway": faces.unflatten(0, (len(latents), -1)).mean(dim=1).tolist(),
        }

    found: dict[str, Any] = study.cell("codec", facts, measure)
    return found


@torch.no_grad()
def _divergence(codec: VAE, held: torch.Tensor) -> float:
    """KL divergence of held-out adapters, in nats per latent."""
    x = codec.scaled.encode(held)
    terms = codec.terms(x, x.new_zeros(len(x), codec.latents))
    return float(terms.divergence) * codec.width / codec.latents


def _flat(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Rows for a table: intervals in words, lists left out."""
    flat = []
    for row in rows:
        shown = {name: value for name, value in row.items() if not isinstance(value, list)}
        intervals = {k: text(v) for k, v in shown.items() if isinstance(v, dict) and "lo" in v}
        flat.append(shown | intervals)
    return flat
