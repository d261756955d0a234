-- Purpose: the labeled images that training takes, each with the fold that it is in.
-- Inputs:  labeled (the rows of sql/labeled_rows.sql), folds (image_id, fold).
-- Grain:   one row per image, ordered by image_id.
select l.*, f.fold
from labeled as l
join folds as f on f.image_id = l.image_id
order by l.image_id;
