"""targetClassMapping applied to the labels' classes."""

from tlt_runner.data.class_mapping import ClassMapping


def test_classes_have_the_ids_of_their_sorted_names() -> None:
    mapping = ClassMapping({"van": "vehicle", "car": "vehicle", "cyclist": "bicycle"})
    assert mapping.class_names == ("bicycle", "vehicle")


def test_an_exact_name_wins_over_one_in_another_case() -> None:
    mapping = ClassMapping({"car": "small", "CAR": "large"})
    assert [mapping.target(name) for name in ("car", "CAR", "Truck")] == ["small", "large", None]
    assert ClassMapping({"car": "vehicle"}).target("Car") == "vehicle"


def test_keys_that_match_no_class_are_listed() -> None:
    mapping = ClassMapping({"car": "vehicle", "bus": "vehicle", "tram": "vehicle"})
    assert mapping.unused_keys(["Car", "person"]) == ["bus", "tram"]
