"""One JupyterLab and one browser for all tests of a file: an open browser leaves an event loop running."""

import pytest

from tests.browser import lab as labs


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    """A running JupyterLab."""
    with labs.lab(tmp_path_factory.mktemp("lab")) as running:
        yield running


@pytest.fixture(scope="module")
def browser():
    """Headless Chromium."""
    with labs.browser() as found:
        yield found


@pytest.fixture
def page(browser):
    """The browser's page; whatever a test did, nothing was asked of another host."""
    browser.foreign.clear()
    yield browser.page
    assert browser.foreign == []
