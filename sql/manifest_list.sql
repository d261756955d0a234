-- Purpose: the manifests, without what is only of use for one of them.
-- Inputs:  manifests.
-- Grain:   one row per manifest, the newest first.
select name, generation, per_class, rows, unique_images, created_at
from manifests
order by created_at desc, name;
