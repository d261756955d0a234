-- Purpose: models that were trained on a manifest that is not in the store.
-- Inputs:  stored_models, stored_manifests.
-- Grain:   one row per such model; none in a sound store.
-- Mend:    bring manifests back as they were before rows left them
select m.model, m.manifest
from stored_models as m
anti join stored_manifests as there on there.name = m.manifest
where m.manifest is not null
order by m.model;
