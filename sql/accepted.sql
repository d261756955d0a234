-- Purpose: the class that a person gave an image, or found right: that of a relabel, or that of the label which was
--          accepted. A later teacher may say another class, of which the accept says nothing.
-- Inputs:  decisions, stored_labels.
-- Grain:   one row per image, at most; none where no generation was judged.
select image_id, new_label::INT as label
from decisions
where decision = 'relabel'
union all
select d.image_id, l.label::INT as label
from decisions as d
join stored_labels as l on l.image_id = d.image_id and l.generation = d.generation
where d.decision = 'accept';
