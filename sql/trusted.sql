-- Purpose: the images with a trusted label, those of the labeled split and of the holdout, as people left them: one that
--          was relabeled has the class that the review gave, one that was rejected is gone. An accept changes nothing.
-- Inputs:  stored_images, decisions.
-- Grain:   one row per image: its columns, label as INT, and source: 'review' where a review gave the class, else the split.
select
    i.* exclude (label),
    case when d.decision = 'relabel' then d.new_label else i.label end::INT as label,
    case when d.decision = 'relabel' then 'review' else i.split end as source
from stored_images as i
left join decisions as d on d.image_id = i.image_id
where i.split in ('labeled', 'holdout') and i.label is not null and d.decision is distinct from 'reject';
