<?php
// The number of the request as often as it asks for, and once more.
echo str_repeat($_GET['number'] . ';', $_GET['times'] + 1);
