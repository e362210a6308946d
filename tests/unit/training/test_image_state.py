"""Values per training image: an epoch reads what the one before wrote, also when its steps are repeated."""

import copy

import pytest
import torch

from robobench.training.image_state import ImageState

INDEX = torch.tensor([5, 0])
VALUES = torch.arange(12.0).view(2, 2, 3) + 1


@pytest.fixture
def state(tmp_path):
    made = ImageState((2, 3))
    made.open(tmp_path / "images")
    return made


def test_next_epoch_reads_what_was_written(state):
    state.write(INDEX, 0, VALUES)
    assert torch.equal(state.read(INDEX.flip(0), 1), VALUES.flip(0))
    assert not state.read(torch.tensor([3, 99]), 1).any()  # never written


def test_epoch_does_not_read_its_own_values(state):
    state.write(INDEX, 0, VALUES)
    state.write(INDEX, 1, -VALUES)
    assert torch.equal(state.read(INDEX, 1), VALUES)
    assert torch.equal(state.read(INDEX, 2), -VALUES)


def test_another_process_resumes_from_files(state):
    state.write(INDEX, 0, VALUES)
    state.flush(0)
    again = ImageState((2, 3))
    again.open(state.folder)
    assert again.is_complete(0) and again.is_complete(1) and not again.is_complete(2)
    assert torch.equal(again.read(INDEX, 1), VALUES)


def test_files_of_checkpoint_outlive_later_epochs(state):
    for epoch in range(6):
        state.write(INDEX, epoch, VALUES + epoch)
        if epoch == 1:
            state.keep(1)
    assert sorted(path.name for path in state.folder.iterdir()) == ["epoch-1", "epoch-2", "epoch-5", "epoch-6"]
    assert torch.equal(state.read(INDEX, 1), VALUES)


def test_copy_reads_zeros_and_writes_nothing(state):
    state.write(INDEX, 0, VALUES)
    other = copy.deepcopy(state)
    assert not other.read(INDEX, 1).any()
    other.write(INDEX, 0, 9 * VALUES)
    assert torch.equal(state.read(INDEX, 1), VALUES)


def test_temporary_folder_is_removed():
    state = ImageState((2, 3))
    state.open(None)
    state.write(INDEX, 0, VALUES)
    folder = state.folder
    assert folder.is_dir()
    state.close()
    assert not folder.exists()
