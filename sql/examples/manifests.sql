-- Purpose: the manifests and what their rules left over.
-- Inputs:  manifests.
-- Grain:   one row per manifest, the newest first.
select
    name, generation, per_class, rows, unique_images,
    (lineage ->> '$.funnel.candidates')::BIGINT as candidates,
    lineage ->> '$.parameters.policy' as policy, created_at
from manifests
order by created_at desc, name;
