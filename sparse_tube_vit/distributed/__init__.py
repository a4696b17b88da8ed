"""Devices and hosts: the mesh, shardings, and agreement between hosts."""
