"""The page that operators look at: NiceGUI, on the port and in the application of the control process.

NiceGUI is one application per process and costs a second to import, so nothing here is imported before the control
process mounts it. Read next: `app`, then `reader` (where figures come from) and a file per group of panels.
"""
