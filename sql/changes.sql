-- Purpose: the images that two generations disagree on, for the table `changes`: those that got another class, and those
--          whose confidence in the same class moved by 0.25 or more; with what it takes to show them.
-- Inputs:  pairs, stored_images.
-- Grain:   one row per such image, so ordered that what is worst in a class lies together.
-- Parameters: $generation, $basis.
--
-- severity, above 0: another class; the lower of the two confidences, for where both teachers were sure one of them is
-- surely wrong. Below 0: the same class; 1 less than how far the confidence moved.
select
    p.image_id, $generation::SMALLINT as generation, p.split, p.label_before, p.label_after,
    p.confidence_before, p.confidence_after,
    case
        when p.label_before <> p.label_after then least(p.confidence_before, p.confidence_after)
        else abs(p.confidence_after - p.confidence_before) - 1::FLOAT
    end as severity,
    i.uri, i.shard, i.byte_offset, i.byte_length,
    $basis::VARCHAR as basis
from pairs as p
left join stored_images as i on i.image_id = p.image_id
where p.label_before <> p.label_after
   or p.label_before = p.label_after and abs(p.confidence_after - p.confidence_before) >= 0.25::FLOAT
order by p.label_after, severity desc, p.image_id;
