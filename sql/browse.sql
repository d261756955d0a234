-- Purpose: a generation's labels in the order in which people look at them, for the table `browse`.
-- Inputs:  browse_rows.
-- Grain:   one row per image, ordered by split, class, confidence, image_id.
-- Parameters: $generation, $basis.
select
    image_id, $generation::SMALLINT as generation, split, label, confidence, margin, entropy,
    uri, shard, byte_offset, byte_length,
    $basis::VARCHAR as basis
from (
    -- sorted before the constants come to it, which would be sorted with the rest
    from browse_rows
    order by split, label, confidence, image_id
);
