-- Purpose: the images that are most worth a person's time.
-- Inputs:  listed (image_id, label, reason, value, detail, confidence, copies: the first of each reason, from
--          worklist_leak.sql, worklist_label.sql, worklist_flip.sql, worklist_doubt.sql, worklist_close_call.sql).
-- Grain:   one row per image, the highest value first; of equals, the lower image_id.
-- Parameters: $limit.
--
-- value is the number of rows of one pass over the training data that a look is expected to put right: the chance that the
-- label is wrong, times the rows that the image counts for.
--
--   reason      who                                               chance                        rows
--   leak        outside the holdout, like one of its images       1                             20: it spoils every measure
--   label       labeled, and a model without it objects           1 - probability of its label  2: teacher and student learn it
--   flip        in the manifest, and another class before         before / (before + now),      copies
--                                                                 both as confidences
--   doubt       in the manifest                                   1 - confidence                copies
--   close call  in the pool, its class is short, not selected     confidence * (1 - margin)     gain: what a repeated image of
--                                                                 that a look decides for it    the class counts for, 1 to 10
--
-- The 20 and the 2 are judgments, the others follow from the manifest. Without a manifest each image counts once, and there
-- is no doubt or close call. An image has the reason that gives it the highest value. It leaves the list when it is
-- settled, see worklist_settled.sql. Of each reason the first are enough: an image among the first of all is among the first
-- of the reason that it is there for.
select image_id, label, reason, value, detail, confidence, coalesce(copies, 0) as copies
from listed
qualify row_number() over (partition by image_id order by value desc, reason) = 1
order by value desc, image_id
limit $limit;
