-- Purpose: the names of the manifests and the generation of their labels, the newest first.
-- Inputs:  stored_manifests.
-- Grain:   one row per manifest.
select name, generation::INT as generation
from stored_manifests
order by created_at desc, name;
