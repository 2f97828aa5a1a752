"""A shared pool that one host can lose: a file system that passes everything through until told otherwise."""

FILE_SYSTEM = "fuse.leeward"
