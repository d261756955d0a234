"""Other loaders over the same files: each an endless sequence of uint8 batches, random resized crop and flip.

    work/files/jpeg/cNN/*.jpg --prepare--> work/shards/*.tar (webdataset), work/litdata (litdata)
    method(work, randaugment, workers) -> batch, batch, ...

Every method gets as many worker processes or threads as there are cores, and the prefetching that it has unless told
otherwise; nothing is normalised. A pass over the files would end every few seconds, which no training has, so the list
of files is repeated, and what counts its passes itself is told to have no end.
"""

from __future__ import annotations

import io
import random
import sys
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

PACKAGES = (
    *("spdl==0.8.0", "spdl-core==0.8.0", "spdl-io==0.8.0", "av==18.1.0"),  # spdl needs FFmpeg's libraries: those of av
    *("litdata==0.2.76", "lightning-utilities==0.15.3", "boto3==1.44.8", "botocore==1.44.8", "s3transfer==0.19.3"),
    *("jmespath==1.1.0", "obstore==0.12.1", "tifffile==2026.3.3"),
)
SIZE = 224
BATCH = 64
SCALE, RATIO = (0.08, 1.0), (3 / 4, 4 / 3)
SHARDS = 8
_REPEATED = 200  # times the list of files


def timm_loader(work: Path, randaugment: bool, workers: int) -> Iterator[Any]:
    """create_loader; its batches before PrefetchLoader makes floats of them."""
    from timm.data import ImageDataset, create_loader

    dataset = ImageDataset(str(work / "files" / "jpeg"))
    dataset.reader.samples = list(dataset.reader.samples) * _REPEATED
    auto = "rand-m9-inc1" if randaugment else None
    how = {"scale": SCALE, "ratio": RATIO, "interpolation": "bilinear", "color_jitter": 0.0, "auto_augment": auto}
    loader = create_loader(
        dataset, (3, SIZE, SIZE), BATCH, is_training=True, num_workers=workers, device=torch.device("cpu"), **how
    )
    return (batch for batch, _ in loader.loader)


def image_folder(work: Path, randaugment: bool, workers: int) -> Iterator[Any]:
    """torchvision's ImageFolder, its transforms on Pillow's pictures, DataLoader."""
    from torchvision.datasets import ImageFolder
    from torchvision.transforms import v2

    noise = [v2.RandAugment(2, 9)] if randaugment else []
    crop = [v2.RandomResizedCrop(SIZE, SCALE, RATIO, antialias=True), v2.RandomHorizontalFlip()]
    dataset = ImageFolder(str(work / "files" / "jpeg"), v2.Compose([*crop, *noise, v2.PILToTensor()]))
    return _data_loader(dataset, workers)


def torchvision_io(work: Path, randaugment: bool, workers: int) -> Iterator[Any]:
    """torchvision's own decoder, v2 transforms on tensors, DataLoader."""
    from torchvision.datasets import ImageFolder
    from torchvision.io import ImageReadMode, decode_jpeg, read_file

    def load(path: str) -> torch.Tensor:
        return decode_jpeg(read_file(path), ImageReadMode.RGB)

    return _data_loader(ImageFolder(str(work / "files" / "jpeg"), _on_tensors(randaugment), loader=load), workers)


def webdataset(work: Path, randaugment: bool, workers: int) -> Iterator[Any]:
    """Tar shards, resampled without end; Pillow, torchvision's transforms, batches made in the workers."""
    import webdataset as wds
    from timm.data.auto_augment import rand_augment_transform
    from torchvision.transforms import v2

    noise = [rand_augment_transform("rand-m9-inc1", {})] if randaugment else []
    crop = [v2.RandomResizedCrop(SIZE, SCALE, RATIO, antialias=True), v2.RandomHorizontalFlip()]
    transform = v2.Compose([*crop, *noise, v2.PILToTensor()])
    shards = sorted(str(file) for file in (work / "shards").glob("*.tar"))
    dataset = wds.WebDataset(shards, resampled=True, shardshuffle=False).shuffle(500).decode("pil")
    dataset = dataset.to_tuple("jpg", "cls").map_tuple(transform, None).batched(BATCH)
    return (batch for batch, _ in wds.WebLoader(dataset, batch_size=None, num_workers=workers))


def litdata(work: Path, randaugment: bool, workers: int) -> Iterator[Any]:
    """Chunks made by optimize, which hold the bytes of the files; decoded by torchvision, v2 transforms on tensors."""
    import litdata as ld

    transform = _on_tensors(randaugment)

    class Pictures(ld.StreamingDataset):
        def __getitem__(self, index: Any) -> Any:
            sample = super().__getitem__(index)
            return transform(sample["image"]), sample["label"]

    pictures = Pictures(str(work / "litdata"), shuffle=True, drop_last=True)
    endless = ld.ParallelStreamingDataset([pictures], length=float("inf"), transform=lambda samples: samples[0])
    return (batch for batch, _ in ld.StreamingDataLoader(endless, batch_size=BATCH, num_workers=workers))


def spdl(work: Path, randaugment: bool, workers: int) -> Iterator[Any]:
    """DataLoader of threads; FFmpeg decodes, crops, resizes and flips, told by a filter made for each picture."""
    import spdl.io
    from spdl.dataloader import DataLoader
    from timm.data.auto_augment import rand_augment_transform
    from torchvision.transforms import v2

    files = sorted(str(file) for file in (work / "files" / "jpeg").rglob("*.jpg"))

    def source() -> Iterator[str]:
        while True:
            random.shuffle(files)
            yield from files

    def decode(path: str) -> Any:
        packets = spdl.io.demux_image(path)
        blank = torch.empty((1, packets.height, packets.width))
        top, left, height, width = v2.RandomResizedCrop(SIZE, SCALE, RATIO).make_params([blank]).values()
        steps = [f"crop={width}:{height}:{left}:{top}:exact=1", f"scale={SIZE}:{SIZE}:flags=bilinear"]
        steps += ["hflip"] if random.random() < 0.5 else []
        return spdl.io.decode_packets(packets, filter_desc=",".join([*steps, "format=pix_fmts=rgb24"]))

    def augment(frames: Any) -> torch.Tensor:
        picture = Image.fromarray(spdl.io.to_numpy(spdl.io.convert_frames(frames)))
        return v2.functional.pil_to_tensor(noise(picture))

    def collate(frames: list[Any]) -> torch.Tensor:
        return spdl.io.to_torch(spdl.io.convert_frames(frames))

    if randaugment:
        from PIL import Image

        noise = rand_augment_transform("rand-m9-inc1", {})
        loader = DataLoader(
            source(),
            preprocessor=lambda path: augment(decode(path)),
            aggregator=torch.stack,
            batch_size=BATCH,
            num_threads=workers,
        )
    else:
        loader = DataLoader(source(), preprocessor=decode, aggregator=collate, batch_size=BATCH, num_threads=workers)
    return iter(loader)


METHODS = {method.__name__: method for method in (timm_loader, image_folder, torchvision_io, webdataset, litdata, spdl)}


def _on_tensors(randaugment: bool) -> Any:
    from torchvision.transforms import v2

    noise = [v2.RandAugment(2, 9)] if randaugment else []
    crop = [v2.RandomResizedCrop(SIZE, SCALE, RATIO, antialias=True), v2.RandomHorizontalFlip()]
    return v2.Compose([*crop, *noise])


def _data_loader(dataset: Any, workers: int) -> Iterator[Any]:
    dataset.samples = dataset.samples * _REPEATED
    loader = torch.utils.data.DataLoader(dataset, BATCH, shuffle=True, num_workers=workers, drop_last=True)
    return (batch for batch, _ in loader)


def prepare(work: Path) -> None:
    """Makes the shards of webdataset and the chunks of litdata."""
    import litdata as ld

    files = sorted((work / "files" / "jpeg").rglob("*.jpg"), key=lambda file: file.name)
    (work / "shards").mkdir()
    for number in range(SHARDS):
        with tarfile.open(work / "shards" / f"{number:04d}.tar", "w") as tar:
            for file in files[number::SHARDS]:
                for name, data in ((file.name, file.read_bytes()), (f"{file.stem}.cls", file.parent.name[1:].encode())):
                    member = tarfile.TarInfo(name)
                    member.size = len(data)
                    tar.addfile(member, io.BytesIO(data))
    ld.optimize(sample, [str(file) for file in files], str(work / "litdata"), chunk_bytes="32MB", num_workers=1)


def sample(path: str) -> dict[str, Any]:
    from PIL import Image

    return {"image": Image.open(path), "label": int(Path(path).parent.name[1:])}


if __name__ == "__main__":
    sys.path.append(sys.argv[2])
    prepare(Path(sys.argv[1]))
