"""The Neo4j store on a real server: the common suite, connecting, writing, looking after it."""

import pytest
from store_suite import OwnStoreSuite, StoreSuite

from graphtrace.stores.maintenance import delete_store, rebuild_store


@pytest.fixture(scope="class")
def new_url(server):
    def make():
        delete_store(server, missing_ok=True)
        return server

    return make


class TestSuite(StoreSuite):
    """The behaviour that all stores share."""


class TestOwnSuite(OwnStoreSuite):
    """The same, on stores of their own."""

    rebuild = staticmethod(rebuild_store)
