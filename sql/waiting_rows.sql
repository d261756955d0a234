-- Purpose: the place of each row that was set aside, among those of its class in the same bin of scores.
-- Inputs:  waiting (label, bin, score, image_id and other columns).
-- Grain:   one row per row of waiting.
select *, row_number() over (partition by label, bin order by score desc, image_id) as place
from waiting;
