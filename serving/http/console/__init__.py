"""Operators' console: NiceGUI pages, on the port and in the application of the control process.

NiceGUI is one application per process and takes a second to import, so this folder is imported only when the control
process mounts it. Read next: `app`, then `reader` (source of the figures) and a file per group of panels.
"""
