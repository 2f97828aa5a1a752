"""A shared pool that one host can lose: a file system in user space that passes everything through, until told not to."""
