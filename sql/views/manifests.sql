-- Purpose: the published manifests; the rows of each stand in a view of the manifest's own name.
-- Inputs:  stored_manifests (the table's files).
-- Grain:   one row per manifest.
select name, path, generation::INT as generation, per_class, rows, unique_images, sha256, lineage, created_at
from stored_manifests;
