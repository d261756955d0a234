-- Purpose: what two generations say of each image, side by side.
-- Inputs:  stored_labels, stored_images.
-- Grain:   one row per image that either has labeled; truth is the trusted class of a holdout image.
-- Parameters: $generation, $previous.
select
    image_id, coalesce(a.split, b.split) as split, h.label as truth,
    b.label as label_before, a.label as label_after,
    b.confidence as confidence_before, a.confidence as confidence_after
from (select image_id, split, label, confidence from stored_labels where generation = $previous) as b
full join (select image_id, split, label, confidence from stored_labels where generation = $generation) as a
    using (image_id)
left join (select image_id, label from stored_images where split = 'holdout') as h using (image_id);
