"""Settings of the C library's allocator."""

import platform

from robobench.core.memory import keep_freed_memory


def test_only_glibc_keeps_freed_memory():
    assert keep_freed_memory() == (platform.libc_ver()[0] == "glibc")
