"""Geometry alone: cameras, oriented 3D boxes, scenes, and relations between objects. Numpy only."""
