"""Data: the batches of a training run (:func:`open_data`)."""

from experiments.common.errors import require
from experiments.data.batches import Array as Array
from experiments.data.batches import Batch as Batch
from experiments.data.batches import Part as Part
from experiments.data.batches import Pipeline as Pipeline
from experiments.data.catalogue import DATA_SETS as DATA_SETS
from experiments.data.catalogue import DataSet as DataSet
from experiments.data.config import DataConfig


def open_data(config: DataConfig, *, seed: int, batch_size: int, process_index: int, process_count: int) -> Pipeline:
    """The batches of a training run.

    Args:
      config: which data, and how they are split.
      seed: decides which labels are wrong, the order of the examples, and where large images are cropped.
      batch_size: examples in a batch of all processes together.
      process_index: which of the processes this is.
      process_count: how many there are.

    Raises:
      UserError: if the data set is not prepared, or too small for what the config asks.
    """
    require(config.name in DATA_SETS, f"there is no data set {config.name!r}: known are {', '.join(DATA_SETS)}")
    require(
        batch_size >= 1 and batch_size % process_count == 0,
        f"batch_size must be a multiple of the number of processes, got {batch_size} with {process_count} processes",
    )
    if DATA_SETS[config.name].in_memory:
        from experiments.data.memory import MemoryPipeline as Chosen
    else:
        from experiments.data.stream import StreamPipeline as Chosen  # it imports grain, which takes a second
    pipeline = Chosen.open(
        config, seed=seed, batch_size=batch_size, process_index=process_index, process_count=process_count
    )
    require(
        pipeline.steps_per_epoch >= 1,
        f"batch_size={batch_size} is more than the {pipeline.num_train} training images of {config.name}",
    )
    return pipeline
