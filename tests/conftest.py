"""Settings of all tests, and fixtures that several rooms share."""

import hypothesis
import pytest

from command_line import CONFIG, Site, deeprec, write_table
from stand_ins import HashedWords

hypothesis.settings.register_profile("deeprec", deadline=None)  # machines are shared, and may be slow for a while
hypothesis.settings.load_profile("deeprec")


@pytest.fixture(scope="module")
def stand_in():
    """Hashed words in the place of MiniLM, and one thread."""
    import torch

    from deeprec.trm.text_encoder import TextEncoder

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(TextEncoder, "load", lambda **_: HashedWords())
        yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def data_site(tmp_path_factory, stand_in):
    """A toy table, its configuration, and a trained TRM."""
    root = tmp_path_factory.mktemp("site")
    write_table(root / "table.csv")
    config, runs = root / "deeprec.config.toml", root / "runs"
    config.write_text(CONFIG.format(table=str(root / "table.csv")))
    result = deeprec("trm", "train", "--config", config, "--runs", runs)
    assert result.code == 0, result.err
    (trained,) = runs.iterdir()
    assert result.out.splitlines()[-1] == f"The trained TRM lies in {trained / 'trm'}"
    return Site(root, config, runs, trained)


@pytest.fixture(scope="module")
def site(data_site):
    """The same; tests of the server have another `site`, a running one."""
    return data_site
