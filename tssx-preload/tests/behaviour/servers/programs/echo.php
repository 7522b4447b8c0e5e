<?php
// What was sent, backwards, and then the request's number as often as it asks for.
$answer = strrev(file_get_contents('php://input')) . str_repeat($_GET['number'] . ';', (int) $_GET['times']);
header('Content-Type: application/octet-stream');
header('Content-Length: ' . strlen($answer));
echo $answer;
