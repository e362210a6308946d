"""The C library is asked in words it knows."""

import platform

from robobench.core.memory import keep_freed_memory


def test_glibc_takes_the_thresholds_and_other_libraries_are_left_alone():
    assert keep_freed_memory() == (platform.libc_ver()[0] == "glibc")
