-- Purpose: a generation's labels in the order in which people look at them, for the table `browse`; with what it takes to
--          show the pictures.
-- Inputs:  stored_labels, stored_images.
-- Grain:   one row per image, ordered by split, class, confidence, image_id.
-- Parameters: $generation, $basis.
select
    l.image_id, $generation::SMALLINT as generation, l.split, l.label, l.confidence, l.margin, l.entropy,
    i.uri, i.shard, i.byte_offset, i.byte_length,
    $basis::VARCHAR as basis
from (
    select image_id, split, label, confidence, margin, entropy from stored_labels where generation = $generation
) as l
join stored_images as i on i.image_id = l.image_id
order by l.split, l.label, l.confidence, l.image_id;
