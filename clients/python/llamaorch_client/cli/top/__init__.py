# SPDX-License-Identifier: Apache-2.0
"""`llorch top`: what happens on a server, live in a terminal.

`state` and `view` are pure: answers and keys in, lines of text out. `screen` and `keys` own the
terminal, `command` owns the connection.
"""
