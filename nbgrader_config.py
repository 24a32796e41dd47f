"""nbgrader: solutions/<topic>/<topic>.ipynb becomes exercises/<topic>/<topic>.ipynb (`make release`)."""

c = get_config()  # defined by whoever loads this file
c.CourseDirectory.course_id = "cme295"
c.CourseDirectory.source_directory = "solutions"
c.CourseDirectory.release_directory = "exercises"
# Grades live in gradebook.db in this folder: git ignores it and `make clean` leaves it alone.
# A check runs a student's kernel in the simulator and compiles it: seconds, and several times that on a busy machine.
c.ExecutePreprocessor.timeout = 300
