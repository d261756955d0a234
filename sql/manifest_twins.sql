-- Purpose: rows of a manifest that must not be trained on any more, because a holdout image that was added since has
--          the same bytes.
-- Inputs:  manifest (its Parquet files), holdout_twins.
-- Grain:   one row per such row, ordered by image_id.
select image_id, uri
from manifest
where image_id in (select image_id from holdout_twins)
order by image_id;
